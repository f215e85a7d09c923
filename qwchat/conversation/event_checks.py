"""Validation of events from untrusted files: every field has a type and a range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from quant.json_fields import is_int_between, short_repr
from qwchat.errors import UsageError
from qwchat.limits import MAX_INTEGER, MAX_SEED

MAX_DEPTH = 8  # Nesting of a reply's settings and figures; writing JSON is recursive.
_MAX_NAME = 200  # Characters.
_EVENT_KINDS = ("node", "head", "system", "title", "dropped")
_ROLES = ("user", "assistant")


def check_event(event: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the kind of an event and its value.

    Raises:
        UsageError: If the event is invalid.
    """
    if not isinstance(event, Mapping):
        raise UsageError(f"an event must be an object, not {short_repr(event)}")
    kinds = [kind for kind in _EVENT_KINDS if kind in event]
    if len(kinds) != 1 or set(event) - {*kinds, "summary"} or ("summary" in event and kinds != ["dropped"]):
        raise UsageError(f"an event must be one of {', '.join(_EVENT_KINDS)}, not {short_repr(list(event))}")
    kind, value = kinds[0], event[kinds[0]]
    if kind == "node":
        if not isinstance(value, Mapping):
            raise UsageError(f"node must be an object, not {short_repr(value)}")
    elif kind == "head":
        value = None if value is None else _integer(kind, value, 1, MAX_INTEGER)
    elif kind == "dropped":
        value = [_integer(kind, each, 1, MAX_INTEGER) for each in _list(kind, value)]
        _optional_text("summary", event.get("summary"))
    elif kind == "title":
        _text(kind, value)
    else:
        _optional_text(kind, value)
    return kind, value


def check_node_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return valid fields of a `Node` from the fields in a file. The tree checks ids.

    Raises:
        UsageError: If a field is unknown, has the wrong type or is out of range.
    """
    known_fields = {
        "id",
        "parent",
        "role",
        "content",
        "token_ids",
        "finish_reason",
        "seed",
        "settings",
        "stats",
        "model",
        "model_name",
    }
    known_fields |= {"created", "note", "replaces"}
    if unknown := set(fields) - known_fields:
        raise UsageError(f"a node has an unknown field {short_repr(sorted(map(str, unknown))[0])}")
    role = fields.get("role")
    if role not in _ROLES:
        raise UsageError(f"role must be {' or '.join(_ROLES)}, not {short_repr(role)}")
    token_ids = fields.get("token_ids")
    if token_ids is not None:
        token_ids = tuple(_integer("token_ids", each, 0, MAX_INTEGER) for each in _list("token_ids", token_ids))
    names = {name: _name(name, fields.get(name)) for name in ("finish_reason", "model", "model_name", "note")}
    numbers = {
        name: None if fields.get(name) is None else _integer(name, fields[name], low, high)
        for name, low, high in (("parent", 1, MAX_INTEGER), ("replaces", 1, MAX_INTEGER), ("seed", 0, MAX_SEED))
    }
    return {
        "id": _integer("id", fields.get("id"), 1, MAX_INTEGER),
        "role": role,
        "content": _text("content", fields.get("content")),
        "token_ids": token_ids,
        "settings": _object("settings", fields.get("settings")),
        "stats": _object("stats", fields.get("stats")),
        "created": _time(fields.get("created", "")),
        **names,
        **numbers,
    }


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not is_int_between(value, low, high):
        raise UsageError(f"{name} must be an integer from {low} to {high}, not {short_repr(value)}")
    return value


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{name} must be a list, not {short_repr(value)}")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be text, not {short_repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} contains a lone surrogate at position {error.start}") from error
    return value


def _optional_text(name: str, value: object) -> str | None:
    return None if value is None else _text(name, value)


def _name(name: str, value: object) -> str | None:
    text = _optional_text(name, value)
    if text is not None and len(text) > _MAX_NAME:
        raise UsageError(f"{name} is longer than {_MAX_NAME} characters: {short_repr(text)}")
    return text


def _object(name: str, value: object) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must be an object, not {short_repr(value)}")
    _check_nested_values(name, value)
    try:
        # A deep copy that holds JSON values only.
        text = json.dumps(dict(value), allow_nan=False, ensure_ascii=False)
        text.encode()
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:  # ValueError: a number that is not finite, or a lone surrogate.
        raise UsageError(f"{name} cannot be stored as JSON: {error}") from error


def _check_nested_values(name: str, value: object) -> None:
    """Raise UsageError if `value` is nested too deeply or holds a number out of range."""
    to_check = [(value, 1)]
    while to_check:
        part, depth = to_check.pop()
        if isinstance(part, int) and not -MAX_SEED <= part <= MAX_SEED:
            raise UsageError(f"{name} contains a number out of range: {short_repr(part)}")
        parts = part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
        if parts and depth > MAX_DEPTH:
            raise UsageError(f"{name} is nested more than {MAX_DEPTH} levels deep")
        to_check.extend((each, depth + 1) for each in parts)


def _time(value: object) -> str:
    text = _text("created", value)
    if text:
        if not text.isprintable():  # fromisoformat accepts any character between date and time.
            raise UsageError(f"created must be a time such as 2026-01-31T12:00:00+00:00, not {short_repr(text)}")
        try:
            datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(
                f"created must be a time such as 2026-01-31T12:00:00+00:00, not {short_repr(text)}"
            ) from None
    return text
