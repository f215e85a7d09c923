"""Read the fields of a JSON body by type, with errors that name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from quant.json_fields import is_unicode
from qwchat.server.api_errors import ApiError, bad_request
from qwchat.server.server_limits import ServerLimits

_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a whole number",
    float: "a number",
}


def parse_body(data: bytes, limits: ServerLimits) -> Fields:
    """Return the fields of a body. Raises ApiError if it is not a JSON object within `limits`."""
    if sum(map(data.count, (b",", b":", b"[", b"{"))) > limits.json_values:
        raise ApiError(413, f"the body has more than {limits.json_values:,} JSON values: shorten it")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise bad_request(f"the body is not valid JSON: {error.msg} at {where}") from None
    except RecursionError:
        value = None
    except ValueError:  # A number with thousands of digits, or NaN.
        raise bad_request(
            "the body is not valid JSON: it contains NaN, Infinity or a number that is too long"
        ) from None
    if value is None or _depth_exceeds(value, limits.json_depth):
        raise bad_request(f"the body must be a JSON object with at most {limits.json_depth} nested objects and arrays")
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    return Fields(value)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Return whether objects and arrays are nested more than `limit` deep."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


class Fields:
    """The fields of a JSON object.

    A field that is null counts as missing. Methods raise ApiError that names the field.

    Args:
        values: the object.
        path: its place in the body, such as `stream_options.`.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self._path = values, path

    def param(self, name: str) -> str:
        """Return the place of a field in the body."""
        return f"{self._path}{name}"

    def has(self, name: str) -> bool:
        """Return whether a field is there and not null."""
        return self._values.get(name) is not None

    def any(self, name: str) -> Any:
        """Return a field of any type; None if it is missing."""
        return self._values.get(name)

    def error(self, name: str, problem: str, code: str | None = None) -> ApiError:
        """Return the error for a field: its place and `problem`."""
        return bad_request(f"{self.param(name)} {problem}", self.param(name), code)

    def text(self, name: str) -> str | None:
        """Return a string; None if it is missing."""
        value: str | None = self._typed(name, str)
        if value is not None and not is_unicode(value):
            raise self.error(name, "contains a lone surrogate, which is not a character")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """Return a boolean."""
        value = self._typed(name, bool)
        return default if value is None else value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number from `low` to `high`; None if it is missing. JSON writes 5 as 5.0 too."""
        value = self._values.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"must be a whole number from {low:,} to {high:,}")
        return value

    def number(self, name: str) -> float | None:
        """Return a finite number; None if it is missing."""
        value = self._values.get(name)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(name, "must be a number")
        return number

    def nested(self, name: str) -> Fields | None:
        """Return the fields of an object; None if it is missing."""
        value = self._typed(name, dict)
        return None if value is None else Fields(value, f"{self.param(name)}.")

    def array(self, name: str, most: int) -> list[Any] | None:
        """Return an array of at most `most` values; None if it is missing."""
        value: list[Any] | None = self._typed(name, list)
        if value is not None and len(value) > most:
            raise self.error(name, f"must have at most {most:,} elements")
        return value

    def objects(self, name: str, most: int) -> list[Fields] | None:
        """Return the fields of each object of an array; None if it is missing."""
        values = self.array(name, most)
        if values is None:
            return None
        for number, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(f"{name}[{number}]", "must be an object")
        return [Fields(value, f"{self.param(name)}[{number}].") for number, value in enumerate(values)]

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Return a string, or an array of at most `most` of them, as a tuple; empty if it is missing."""
        value = self._values.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(each, str) and is_unicode(each) for each in value):
            raise self.error(name, "must be a string or an array of strings")
        if len(value) > most:
            raise self.error(name, f"must have at most {most:,} strings")
        return tuple(value)

    def token_ids(self, name: str, most: int, vocabulary: int) -> list[int] | None:
        """Return an array of token ids below `vocabulary`; None if it is missing."""
        values = self.array(name, most)
        if values is None:
            return None
        if not all(type(each) is int and 0 <= each < vocabulary for each in values):
            raise self.error(name, f"must be an array of token ids from 0 to {vocabulary - 1:,}")
        return values

    def _typed(self, name: str, kind: type) -> Any:
        value = self._values.get(name)
        if value is not None and not isinstance(value, kind):
            raise self.error(name, f"must be {_NAMES[kind]}")
        return value
