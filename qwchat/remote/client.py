"""Client of the OpenAI protocol: models, chat completions as a stream, and token counts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quant.json_fields import is_int_between
from qwchat.errors import EndpointError
from qwchat.limits import MAX_INTEGER
from qwchat.remote.chunks import Chunk, parse_chunk
from qwchat.remote.failures import MAX_ERROR_BYTES, Failure, error_of, failure_of, read_failure
from qwchat.remote.sse import EventParser, LongLineError
from qwchat.remote.transport import Cancel, CancelledError, Exchange, Head, HttpRequest
from qwchat.settings.endpoint import Endpoint
from qwchat.settings.endpoint_key import EndpointKey

MAX_TRIES = 4
_LONGEST_WAIT = 60.0  # A server that asks for more time is reported as busy.
_LIST_SECONDS = 30.0  # A list of models needs no prefill.
_TOKENIZE_SECONDS = 3.0
_MAX_LIST_BYTES = 4 << 20
_MAX_MODELS = 10_000
_WAIT_STEP = 0.05
_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
_SCHEMA = "response_format"
_RENAMED = {"max_tokens": "max_completion_tokens"}


@dataclass(frozen=True)
class ServerModel:
    """A model of a server.

    Attributes:
        name: its name.
        context: size of its context window in tokens; None if the server does not say.
        software: the server's `owned_by`, which for some servers is the name of the program.
    """

    name: str
    context: int | None = None
    software: str = ""


@dataclass
class EndpointClient:
    """Client of one server.

    Attributes:
        endpoint: the server.
        key: the key for it, or None.
        seconds: longest time without any byte from the server.
        notify: shows a notice.
        first_wait: seconds before the first new try, if a busy server does not say how long to wait; then twice as many
            each time.
        left_out: fields of a request that the server does not know.
        listed: the models that the server listed when it was asked last.
        older_schemas: whether the server takes a JSON schema in the older form of llama.cpp alone.
    """

    endpoint: Endpoint
    key: EndpointKey | None = None
    seconds: float = 300.0
    notify: Callable[[str], None] = lambda text: None
    first_wait: float = 1.0
    left_out: dict[str, str | None] = field(default_factory=dict)
    listed: list[ServerModel] = field(default_factory=list)
    older_schemas: bool = False
    _counts_tokens: bool = True

    def models(self, cancel: Cancel | None = None) -> list[ServerModel] | None:
        """Return the models of the server, or None if it does not list them. Raises EndpointError, CancelledError."""
        seconds = min(_LIST_SECONDS, self.seconds)
        with self._send("GET", f"{self.endpoint.url}/models", None, cancel, seconds) as exchange:
            head = exchange.head()
            if head.status in (404, 405, 501):
                return None
            body = self._body(exchange, head, _MAX_LIST_BYTES)
        value = _parsed(body)
        entries = value.get("data", value.get("models")) if isinstance(value, dict) else value
        if not isinstance(entries, list):
            raise EndpointError(
                f"{self.endpoint.url}/models is not a list of models: is this an OpenAI-compatible server?"
            )
        self.listed = [model for entry in entries[:_MAX_MODELS] if (model := _server_model(entry)) is not None]
        return self.listed

    def count_tokens(self, text: str, model: str) -> int | None:
        """Return the number of tokens of `text`, or None if the server does not say."""
        if not self._counts_tokens:
            return None
        # vLLM, SGLang and qwchat read `prompt`, llama-server reads `content`.
        body = {"model": model, "prompt": text, "content": text, "add_special_tokens": False}
        seconds = min(_TOKENIZE_SECONDS, self.seconds)
        try:
            with self._send("POST", f"{self.endpoint.root}/tokenize", body, None, seconds) as exchange:
                head = exchange.head()
                value = _parsed(exchange.read(64 * len(text) + _MAX_LIST_BYTES)) if head.status == 200 else None
        except EndpointError:
            value = None
        count: object = None
        if isinstance(value, dict):
            count = value.get("count")
            count = len(value["tokens"]) if count is None and isinstance(value.get("tokens"), list) else count
        self._counts_tokens = is_int_between(count, 0, MAX_INTEGER)
        return count if is_int_between(count, 0, MAX_INTEGER) else None

    def chat(
        self, body: Mapping[str, Any], cancel: Cancel | None, *, tokens: int, context: int, max_bytes: int
    ) -> Generator[Chunk, None, None]:
        """Ask for a reply and yield its chunks as they arrive.

        A field that the server rejects is left out from then on, with a notice. A busy server is asked again.

        Args:
            body: the request; every field but model, messages and stream may be left out.
            cancel: returns True to stop.
            tokens: estimated length of the prompt, for messages.
            context: size of the context window, for messages.
            max_bytes: largest size of the whole reply with its framing.

        Raises:
            CancelledError: `cancel` returned True; the connection is closed.
            EndpointError, ModelError, PromptTooLongError: the server does not reply, or cuts the reply off.
        """
        tries = 0
        url = f"{self.endpoint.url}/chat/completions"
        while True:
            with self._send("POST", url, self._accepted(body), cancel) as exchange:
                head = exchange.head()
                if head.status == 200:
                    yield from self._chunks(exchange, head, max_bytes)
                    return
                failure = read_failure(head, exchange.read(MAX_ERROR_BYTES), self.key)
            if self._leave_out(failure, body):
                continue
            tries += 1
            if not (failure.is_busy and tries < MAX_TRIES and self._wait(failure, tries, cancel)):
                raise error_of(
                    failure, self.endpoint, self.key, str(body.get("model", "")), tokens=tokens, context=context
                )

    def _accepted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request with the fields that the server is known to reject left out or renamed."""
        found = {}
        for name, value in body.items():
            accepted = self.left_out.get(name, name)
            if accepted is not None:
                found[accepted] = _older_schema(value) if accepted == _SCHEMA and self.older_schemas else value
        return found

    def _leave_out(self, failure: Failure, body: Mapping[str, Any]) -> bool:
        """Remember which field the server rejects. Return whether to ask again without it."""
        for name in body:
            other = _RENAMED.get(name)
            known = self.left_out.get(name, name)
            if name in ("model", "messages", "stream") or known is None or not failure.names_unknown_field(known):
                continue
            if name == _SCHEMA and not self.older_schemas:
                self.older_schemas = True
                return True
            if other is not None and known == name and other in failure.text:
                self.left_out[name] = other
            else:
                self.left_out[name] = None
                self.notify(f"{self.endpoint.name} does not accept {known}, which is left out from now on")
            return True
        return False

    def _wait(self, failure: Failure, tries: int, cancel: Cancel | None) -> bool:
        """Wait until a busy server may be asked again. Return False if that takes too long. Raises CancelledError."""
        wait = failure.retry_after
        seconds = self.first_wait * 2 ** (tries - 1) if wait is None else wait
        if seconds > min(_LONGEST_WAIT, self.seconds):
            return False
        self.notify(f"{self.endpoint.name} is busy (HTTP {failure.status}): trying again in {seconds:,.0f} s")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if cancel is not None and cancel():
                raise CancelledError
            time.sleep(min(_WAIT_STEP, left))
        return True

    def _chunks(self, exchange: Exchange, head: Head, max_bytes: int) -> Iterator[Chunk]:
        """Yield the chunks of a stream, or the one of a server that does not stream."""
        name = self.endpoint.name
        if head.content_type in ("application/json", "text/html"):
            value = _parsed(self._body(exchange, head, max_bytes))
            if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
                self._raise_if_error(value)
                raise self._not_a_stream(head)
            yield parse_chunk(value)
            return
        parser, received, complete = EventParser(), 0, False
        try:
            for piece in self._identity(exchange, head):
                received += len(piece)
                if received > max_bytes:
                    raise EndpointError(f"{name} sent more than {max_bytes:,} bytes, and the reply was stopped")
                for data in parser.push(piece):
                    if data.strip() == "[DONE]":
                        return
                    yield (chunk := self._chunk(data))
                    complete = complete or bool(chunk.finish_reason)
            for data in parser.flush():
                if data.strip() == "[DONE]":
                    return
                yield (chunk := self._chunk(data))
                complete = complete or bool(chunk.finish_reason)
        except LongLineError:
            raise EndpointError(f"{name} sent an event that is too long, and the reply was stopped") from None
        if not complete:
            if head.content_type != "text/event-stream":
                raise self._not_a_stream(head)
            raise EndpointError(f"{name} ended the connection before the reply was complete: try again")

    def _chunk(self, data: str) -> Chunk:
        value = _parsed(data.encode("utf-8", "replace"))
        if not isinstance(value, dict):
            raise EndpointError(
                f"{self.endpoint.name} sent an event that is not a JSON object: is it an OpenAI-compatible server?"
            )
        self._raise_if_error(value)
        return parse_chunk(value)

    def _raise_if_error(self, value: object) -> None:
        if isinstance(value, dict) and (value.get("error") or value.get("object") == "error"):
            failure = failure_of(value, 200, self.key)
            raise error_of(failure, self.endpoint, self.key, "", tokens=0, context=0)

    def _not_a_stream(self, head: Head) -> EndpointError:
        kind = f"{head.content_type}, " if head.content_type.isprintable() and head.content_type else ""
        return EndpointError(
            f"{self.endpoint.name} answers with {kind[:80]}not with a chat completion: is {self.endpoint.url} right?"
        )

    def _identity(self, exchange: Exchange, head: Head) -> Iterator[bytes]:
        """Return the pieces of the body, which must not be compressed: it could grow without limits."""
        if head.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise EndpointError(
                f"{self.endpoint.name} compresses its answer although it was asked not to: check its proxy"
            )
        return exchange.pieces()

    def _body(self, exchange: Exchange, head: Head, limit: int) -> bytes:
        """Return a whole body of at most `limit` bytes. Raises EndpointError, also for an error status."""
        if head.status != 200:
            failure = read_failure(head, exchange.read(MAX_ERROR_BYTES), self.key)
            raise error_of(failure, self.endpoint, self.key, "", tokens=0, context=0)
        body = b""
        for piece in self._identity(exchange, head):
            body += piece
            if len(body) > limit:
                raise EndpointError(
                    f"{self.endpoint.name} sent more than {limit:,} bytes: is it an OpenAI-compatible server?"
                )
        return body

    def _send(
        self, method: str, url: str, body: Mapping[str, Any] | None, cancel: Cancel | None, seconds: float | None = None
    ) -> Exchange:
        headers = {
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "qwchat",
        }
        if self.key is not None:
            headers["Authorization"] = self.key.header
        data = b""
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        uses_proxies = not self.endpoint.is_loopback
        request = HttpRequest(method, url, headers, data, seconds or self.seconds, uses_proxies)
        return Exchange(request, self.endpoint.name, cancel)


def _older_schema(value: Any) -> dict[str, Any]:
    """Return a response format as llama.cpp's Python server reads it."""
    return {"type": "json_object", "schema": value["json_schema"]["schema"]}


def _server_model(entry: object) -> ServerModel | None:
    """Return a model of the list; None if its name is unusable."""
    if not isinstance(entry, dict):
        return None
    name = entry.get("id", entry.get("name"))
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 200:
        return None
    meta = entry.get("meta")
    sizes = [entry.get(field_name) for field_name in _CONTEXT_FIELDS]
    if isinstance(meta, dict):
        sizes += [meta.get("n_ctx"), meta.get("n_ctx_train")]
    context = next((size for size in sizes if is_int_between(size, 2, MAX_INTEGER)), None)
    software = entry.get("owned_by")
    return ServerModel(name, context, software if isinstance(software, str) else "")


def _parsed(data: bytes) -> Any:
    """Return the value of a JSON text; None for text that is not JSON."""
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
