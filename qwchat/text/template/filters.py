"""Filters and functions of chat templates. Each pays for the values that it creates.

Some filters of jinja2 are left out: they create values without a limit (`center`, `indent`, `wordwrap`, `format`), read
attributes (`attr`), or hash values that a template can choose to collide (`unique`, `groupby`).
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jinja2
from jinja2.filters import FILTERS, make_attrgetter, sync_do_map
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import safe_range
from jinja2.utils import Namespace, pass_context, pass_environment

from qwchat.errors import TemplateError
from qwchat.text.template.budget import BUDGET

STEPS, VALUE, CONCAT = "limit steps", "limit value", "limit concat"  # templates cannot use names with a space
REFUSAL = "it refuses this conversation: "
PATTERN_LIMIT = 256  # characters of a backward search or strip, which take quadratic time in Python
ATTRIBUTE_LIMIT = 100  # characters of an attribute path
ATTRIBUTE_PARTS = 8  # parts of an attribute path; each is a look-up per item

FILTER_NAMES = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length"),
    *("list", "lower", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort"),
    *("title", "trim", "upper"),
)
_ATTRIBUTE_POSITIONS = {"max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2}


def filters() -> dict[str, Callable[..., Any]]:
    """Return the filters by name, including those that the rewritten syntax tree uses."""
    own: dict[str, Callable[..., Any]] = {"join": _join, "map": _map, "replace": replace, "string": to_text}
    own |= {"tojson": _to_json, "safe": lambda value: value}
    own |= {STEPS: lambda v: BUDGET.get().steps(v), VALUE: lambda v: BUDGET.get().spend_value(v), CONCAT: _concat}
    return {name: _metered(name, FILTERS[name]) for name in FILTER_NAMES} | own


def functions() -> dict[str, Callable[..., Any]]:
    """Return the global functions by name."""
    return {
        "range": safe_range,
        "namespace": _namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a jinja2 filter so that its arguments are checked and paid for. Its input has been paid for."""
    first = 2 if hasattr(function, "jinja_pass_arg") else 1

    @functools.wraps(function)  # also copies the attribute that makes jinja2 pass the environment or context
    def paid(*args: Any, **kwargs: Any) -> Any:
        given = args[first:]
        BUDGET.get().spend_arguments(given, kwargs)
        if name in _ATTRIBUTE_POSITIONS:
            place = _ATTRIBUTE_POSITIONS[name]
            check_attribute(kwargs.get("attribute", given[place] if len(given) > place else None))
        if name == "trim":
            check_pattern(given, kwargs)
        return function(*args, **kwargs)

    return paid


def check_attribute(attribute: Any) -> None:
    """Check an attribute path.

    Raises:
        TemplateError: it is too long or has too many parts.
    """
    if isinstance(attribute, str):
        parts = attribute.count(".") + attribute.count(",") + 1
        if len(attribute) > ATTRIBUTE_LIMIT or parts > ATTRIBUTE_PARTS:
            raise TemplateError("it looks up an attribute path with too many parts")


def check_pattern(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    """Check the arguments of a method that takes quadratic time, such as `strip` or `rfind`.

    Raises:
        TemplateError: an argument is too long.
    """
    if any(isinstance(value, str) and len(value) > PATTERN_LIMIT for value in (*args, *kwargs.values())):
        raise TemplateError(f"it strips or searches backwards for more than {PATTERN_LIMIT} characters")


@pass_context
def finalise(_context: Context, value: Any) -> str:
    """Return the text of a printed value and pay for it."""
    # Taking the context keeps jinja2 from calling this function at compile time.
    text = to_text(value)
    BUDGET.get().spend(len(text))
    return text


def to_text(value: Any) -> str:
    """Return `value` as a template prints it.

    Raises:
        TemplateError: the value is of a type that is not allowed, or the budget is exhausted.
    """
    if isinstance(value, list | tuple | dict):
        BUDGET.get().spend_value(value)
    elif not isinstance(value, str | int | float | Undefined | None):
        raise TemplateError(f"it prints a {type(value).__name__}, which is not allowed")
    return str(value)


def _concat(values: list[Any]) -> str:
    texts = [to_text(value) for value in values]
    BUDGET.get().spend(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _map(context: Context, value: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Apply `map` of jinja2 and pay for each result before the next is created."""
    budget = BUDGET.get()
    budget.spend_arguments(args, kwargs)
    check_attribute(kwargs.get("attribute"))
    return map(budget.spend_value, sync_do_map(context, value, *args, **kwargs))


@pass_environment
def _join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    check_attribute(attribute)
    budget = BUDGET.get()
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    texts = [to_text(item) for item in budget.steps(items)]
    budget.spend(sum(map(len, texts)) + len(d) * len(texts))
    return d.join(texts)


def replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    """Return the text of `value` with `old` replaced. Pay for it before it is created."""
    text = to_text(value)
    found = text.count(old)
    BUDGET.get().spend(len(text) + found * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers writes it into prompts, without HTML escapes."""
    if (indent or 0) > 16 or any(len(separator) > 8 for separator in separators or ()):
        raise TemplateError("it indents JSON too far")
    BUDGET.get().spend_value(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    # From pairs, `dict` would hash keys that a template can choose to collide.
    if not all(isinstance(value, dict) for value in args):
        raise TemplateError("it creates a namespace from a value that is not a dict")
    return Namespace(*args, **kwargs)


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(f"{REFUSAL}{to_text(message)[:200]}")


def _strftime_now(pattern: str) -> str:
    # Digits after % are a width, with which a short pattern can demand any amount of memory.
    if len(pattern) > 100 or re.search(r"%[^a-zA-Z%]", pattern):
        raise TemplateError("it uses a date format that is not allowed")
    return datetime.datetime.now().strftime(pattern)
