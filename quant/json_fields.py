"""Typed access to a JSON object: every value must have the expected type and range."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeGuard

from quant.safe_files import ErrorFactory

MAX_ID = 1 << 24
"""Upper limit of token ids, exclusive."""
MAX_IDS = 256
_SHOWN_CHARACTERS = 60  # characters of an invalid value that a message repeats
_MAX_TEXT = 1000


class JsonFields:
    """Typed access to one JSON object. Messages name the source, the key and the value.

    All methods raise `error` for a missing or invalid value. JSON null counts as missing.

    Args:
        values: the object.
        where: name of the object for messages.
        error: class of the exceptions.
        remedy: text that ends every message.
    """

    def __init__(self, values: Mapping[str, Any], where: str, error: ErrorFactory, remedy: str = "") -> None:
        self.values = values
        self.where = where
        self.error = error
        self.remedy = remedy

    def invalid(self, what: str) -> Exception:
        """Return the exception whose message says `what` is wrong and where."""
        return self.error(f"{self.where}: {what}{self.remedy}")

    def mapping(self, key: str) -> dict[str, Any]:
        """Return the object under `key`."""
        value = self._get(key, "object", None)
        if not isinstance(value, dict):
            raise self.invalid(f"{key} is {short_repr(value)}, expected an object")
        return value

    def inner(self, key: str, name: str | None = None) -> JsonFields:
        """Return typed access to the object under `key`.

        Args:
            key: key of the object.
            name: name of the object for messages. None: the key. "": none.
        """
        label = key if name is None else name
        return JsonFields(self.mapping(key), f"{self.where}: {label}" if label else self.where, self.error, self.remedy)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return the integer under `key`, `low` to `high`, or `default` if it is missing (None: it must be present)."""
        value = self._get(key, "integer", default)
        if not is_int_between(value, low, high):
            raise self.invalid(f"{key} is {short_repr(value)}, expected an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Return the number under `key`, `low` to `high`, or `default` if it is missing (None: it must be present)."""
        value = self._get(key, "number", default)
        # Compare before converting: an integer may be too large for a float. The comparison also refuses NaN.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.invalid(f"{key} is {short_repr(value)}, expected a number from {low:g} to {high:g}")
        return float(value)

    def optional_number(self, key: str, low: float, high: float) -> float | None:
        """Return the number under `key`, from `low` to `high`, or None if it is missing."""
        return None if self.values.get(key) is None else self.number(key, low, high)

    def boolean(self, key: str, default: bool) -> bool:
        """Return the boolean under `key`, or `default` if it is missing."""
        value = self._get(key, "true or false", default)
        if not isinstance(value, bool):
            raise self.invalid(f"{key} is {short_repr(value)}, expected true or false")
        return value

    def text(self, key: str, default: str | None) -> str | None:
        """Return the string under `key`, at most 1,000 characters, or `default` if it is missing."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise self.invalid(f"{key} is {short_repr(value)}, expected a string of at most {_MAX_TEXT} characters")
        return value

    def required_text(self, key: str) -> str:
        """Return the string under `key`, at most 1,000 characters. It must be present."""
        self._get(key, "string", None)
        return self.text(key, None) or ""

    def sizes(self, key: str, most: int, high: int) -> tuple[int, ...]:
        """Return the list under `key`: 1 to `most` integers, each from 1 to `high`."""
        value = self._get(key, "list of sizes", None)
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= most
            or not all(is_int_between(x, 1, high) for x in value)
        ):
            raise self.invalid(f"{key} is {short_repr(value)}, expected 1 to {most} integers from 1 to {high}")
        return tuple(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return the token ids under `key`, which is one id or a list. Return () if it is missing."""
        value = self.values.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if len(items) > MAX_IDS:
            raise self.invalid(f"{key} lists {len(items):,} token ids, expected at most {MAX_IDS}")
        for item in items:
            if not is_int_between(item, 0, MAX_ID - 1):
                raise self.invalid(f"{key} is {short_repr(value)}, expected a token id or a list of token ids")
        return tuple(items)

    def _get(self, key: str, kind: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise self.invalid(f"the key {key!r} ({kind}) is missing")
        return default


def is_int_between(value: object, low: int, high: int) -> TypeGuard[int]:
    """Return whether `value` is an integer from `low` to `high`. Booleans are not integers."""
    return type(value) is int and low <= value <= high


def is_unicode(text: str) -> bool:
    """Return True if `text` can be encoded as UTF-8, which a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def short_repr(value: object) -> str:
    """Return the repr of an untrusted value for a message, on one line and at most 60 characters long."""
    if isinstance(value, str):
        text = repr(value[: _SHOWN_CHARACTERS + 1])
    elif isinstance(value, int) and value.bit_length() > 4 * _SHOWN_CHARACTERS:
        return "a number with many digits"  # Python does not convert more than 4,300 digits to text
    else:
        text = _BoundedRepr().repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


class _BoundedRepr(reprlib.Repr):
    """`repr` that is bounded in depth and length, so that large or deeply nested values cost little."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 8, 8, 4
        self.maxstring = self.maxlong = self.maxother = _SHOWN_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        """Return the digits of `x`, or an ellipsis if it has too many."""
        return repr(x) if x.bit_length() <= 4 * _SHOWN_CHARACTERS else "…"
