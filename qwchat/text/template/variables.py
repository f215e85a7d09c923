"""Variables of a chat template that the user sets, such as `enable_thinking`.

A variable is written as NAME=VALUE. The value is JSON, or a text if it is not JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from quant.json_fields import is_unicode
from qwchat.errors import UsageError

TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Names of special tokens, whose texts come from the model's files."""

_CONVERSATION = ("messages", "tools", "documents", "add_generation_prompt")
_FUNCTIONS = ("cycler", "dict", "joiner", "lipsum", "namespace", "raise_exception", "range", "strftime_now")
RESERVED_NAMES = frozenset((*_CONVERSATION, *TOKEN_NAMES, *_FUNCTIONS, "loop", "self"))
"""Names that templates expect from the program."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def parse_variable(text: str) -> tuple[str, Any]:
    """Return the name and the value of `NAME=VALUE`. Raises UsageError if it is not a variable."""
    name, equals, written = text.partition("=")
    if not equals:
        raise UsageError(f"write a template variable as NAME=VALUE, not {text[:80]!r}")
    check_name(name)
    if written in _PYTHON_WORDS:
        raise UsageError(f"the template variable {name} must be JSON: write {name}={_PYTHON_WORDS[written]}")
    try:
        value = json.loads(written, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        value = written
    except (ValueError, RecursionError):  # A number with too many digits or NaN, or JSON that is nested too deeply.
        raise UsageError(f"the value of the template variable {name} is not valid JSON: {written[:80]!r}") from None
    format_variable(name, value)
    return name, value


def format_variable(name: str, value: object) -> str:
    """Return a variable as `NAME=JSON`. Raises UsageError if the name is reserved or the value is not JSON."""
    check_name(name)
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise UsageError(f"the value of the template variable {name} is not valid JSON: {str(value)[:80]!r}") from None
    if not is_unicode(written):
        raise UsageError(f"the template variable {name} contains a lone surrogate, which is not a character: remove it")
    return f"{name}={written}"


def parse_variables(texts: Iterable[str]) -> dict[str, Any]:
    """Return variables by name; the last value of a name counts. Raises UsageError."""
    return dict(map(parse_variable, texts))


def json_variables(variables: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of `variables` that contains JSON values only. Raises UsageError if that is impossible."""
    return {name: json.loads(format_variable(name, value).partition("=")[2]) for name, value in variables.items()}


def check_name(name: object) -> None:
    """Raise UsageError if `name` cannot be the name of a user's variable."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"a template variable needs a name of letters, digits and underscores, not {str(name)[:80]!r}")
    if name in RESERVED_NAMES:
        raise UsageError(f"the template variable {name} is set by qwchat itself: choose another name")


def translate_text(value: Any, table: Mapping[int, str]) -> Any:
    """Return a JSON value with all its texts translated."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, list):
        return [translate_text(item, table) for item in value]
    if isinstance(value, dict):
        return {name.translate(table): translate_text(item, table) for name, item in value.items()}
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)
