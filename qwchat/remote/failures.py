"""Failures that a server reports, as one-line errors. What a server writes is untrusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.json_fields import is_int_between
from qwchat.characters import sanitise_name
from qwchat.errors import EndpointError, ModelError, PromptTooLongError, QwchatError
from qwchat.limits import MAX_INTEGER
from qwchat.remote.transport import Head
from qwchat.settings.endpoint import KEY_VARIABLE, Endpoint
from qwchat.settings.endpoint_key import EndpointKey

MAX_ERROR_BYTES = 1 << 16
_MAX_SHOWN = 300  # characters of a server's message
_BUSY = (408, 429, 503)
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")
_TOO_LONG_WORDS = re.compile(r"maximum context length|context window|exceeds? the (available )?context", re.IGNORECASE)
_UNKNOWN_MODEL_WORDS = re.compile(
    r"model\b.*(not found|not exist|does not|unknown|no such)|no such model", re.IGNORECASE
)
_UNKNOWN_FIELD_WORDS = re.compile(
    r"unknown|unrecogni[sz]ed|unexpected|not permitted|extra|unsupported|not support|not allowed|not implemented"
    r"|invalid param|forbidden|literal_error",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """A failure as a server describes it.

    Attributes:
        status: HTTP status; 200 for an error within a stream.
        text: the server's message on one line, shortened; "" if it has none.
        code: the server's name of the error, or "".
        param: the field of the request that is wrong, or "".
        retry_after: seconds after which to try again; None if the server does not say.
        location: where the server redirects to, or "".
        tokens: length of the prompt, if it is too long and the server says so.
        context: size of the context window, likewise.
    """

    status: int
    text: str = ""
    code: str = ""
    param: str = ""
    retry_after: float | None = None
    location: str = ""
    tokens: int | None = None
    context: int | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _BUSY

    def names_unknown_field(self, name: str) -> bool:
        """Return whether the server rejects the field `name` of the request."""
        if self.status not in (400, 422, 500):  # 500: llama.cpp's Python server.
            return False
        named = re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", f"{self.text} {self.param}") is not None
        return named and _UNKNOWN_FIELD_WORDS.search(f"{self.text} {self.code}") is not None


def read_failure(head: Head, body: bytes, key: EndpointKey | None) -> Failure:
    """Return the failure in a response with an error status."""
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        value = None
    failure = failure_of(value, head.status, key)
    location = head.headers.get("location", "") if 300 <= head.status < 400 else ""
    text = failure.text
    if value is None and head.content_type == "text/plain":
        text = one_line(body.decode("utf-8", "replace"), key)
    after = _seconds(head.headers.get("retry-after", ""))
    details = (failure.code, failure.param, after, one_line(location, key), failure.tokens, failure.context)
    return Failure(head.status, text, *details)


def failure_of(value: object, status: int, key: EndpointKey | None) -> Failure:
    """Return the failure in a JSON value such as `{"error": {"message": "…"}}`."""
    found: object = value
    if isinstance(value, Mapping):
        found = next((value[name] for name in ("error", "detail", "message") if value.get(name)), value)
    if isinstance(found, list):  # As FastAPI reports invalid fields.
        found = found[0] if found else None
    if isinstance(found, str):
        return Failure(status, one_line(found, key))
    if not isinstance(found, Mapping):
        return Failure(status)
    text = next((found[name] for name in ("message", "msg", "detail") if isinstance(found.get(name), str)), "")
    code = next((found[name] for name in ("code", "type") if isinstance(found.get(name), str)), "")
    param = found.get("param", found.get("loc"))
    param = ".".join(map(str, param[:8])) if isinstance(param, list) else param if isinstance(param, str) else ""
    tokens, context = (_count(found, name) for name in ("n_prompt_tokens", "n_ctx"))
    return Failure(status, one_line(text, key), code[:100], param[:100], None, "", tokens, context)


def one_line(text: str, key: EndpointKey | None) -> str:
    """Return what a server wrote on one line, shortened, without controls and without the key."""
    hidden = text if key is None else key.hide_in(text)
    line = sanitise_name(" ".join(hidden[: 4 * _MAX_SHOWN].split()))
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…"


def error_of(
    failure: Failure, endpoint: Endpoint, key: EndpointKey | None, model: str, *, tokens: int, context: int
) -> QwchatError:
    """Return the error for a failure.

    Args:
        failure: what the server reports.
        endpoint: the server.
        key: the key that was sent.
        model: the model that was asked for.
        tokens: estimated length of the prompt.
        context: size of the context window.
    """
    name, said, status = endpoint.name, f": {failure.text}" if failure.text else "", failure.status
    if failure.code in _TOO_LONG or (status == 400 and _TOO_LONG_WORDS.search(failure.text)):
        size = failure.context or context
        described = f"the prompt does not fit in the context window at {name}{said}"
        return PromptTooLongError(max(failure.tokens or tokens, size), size, size, described)
    if status in (404, 400) and _UNKNOWN_MODEL_WORDS.search(f"{failure.text} {failure.code}".replace("_", " ")):
        return ModelError(f"{name} has no model {sanitise_name(model)}{said}")
    if status == 401:
        return EndpointError(_key_problem(name, key))
    if failure.is_busy:
        later = "later" if failure.retry_after is None else f"in {failure.retry_after:,.0f} s"
        return EndpointError(f"{name} is busy (HTTP {status}){said}: try again {later}")
    if 300 <= status < 400:
        where = failure.location or "another place"
        return EndpointError(f"{name} redirects to {where}, which is not followed: use the URL of the server itself")
    reasons = {
        403: "refuses access; the key may lack a permission",
        404: f"has no {endpoint.path}/chat/completions; is this the URL of an OpenAI-compatible server?",
        413: "refuses a conversation of this size; shorten it",
    }
    if status == 200:
        return EndpointError(f"{name} stopped with an error{said or ', without a reason'}")
    happened = reasons.get(status, "failed; its log may say why" if status >= 500 else "refused the request")
    return EndpointError(f"{name} {happened} (HTTP {status}){said}")


def _key_problem(name: str, key: EndpointKey | None) -> str:
    if key is None:
        return f"{name} needs a key (HTTP 401): set {KEY_VARIABLE}, or write the key to a file that only you can read"
    return f"{name} does not accept the key from {key.source} (HTTP 401): replace it"


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if is_int_between(value, 1, MAX_INTEGER) else None


def _seconds(text: str) -> float | None:
    """Return the seconds of a Retry-After field, which may be a date."""
    stripped = text.strip()
    if stripped.isdecimal() and stripped.isascii():
        return float(stripped[:9])
    if not stripped:
        return None
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        until = parsedate_to_datetime(stripped)
    except (TypeError, ValueError):
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
