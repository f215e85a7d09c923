"""The filters and functions that chat templates may use, each of which pays for what it makes.

Those of jinja2 that are left out either make values without a limit (`center`, `indent`, `wordwrap`, `format`), reach
attributes (`attr`), or hash values that a template can choose so that all of them collide (`unique`, `groupby`).
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

STEPS, VALUE, CONCAT = "limit steps", "limit value", "limit concat"  # no template can write a name with a space
REFUSAL = "it refuses this conversation: "
PATTERN_LIMIT = 256  # characters of what is searched backwards or stripped: Python does both in quadratic time
ATTRIBUTE_LIMIT = 100  # characters of an attribute's path ...
ATTRIBUTE_PARTS = 8  # ... and its parts, each of which is a look-up for every item

FILTER_NAMES = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length"),
    *("list", "lower", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort"),
    *("title", "trim", "upper"),
)
_ATTRIBUTE_POSITIONS = {"max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2}


def filters() -> dict[str, Callable[..., Any]]:
    """Return the filters by name, those of the syntax tree's rewriting included."""
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
    """Wrap a filter of jinja2 so that its arguments are checked and paid for; its value was paid for before."""
    first = 2 if hasattr(function, "jinja_pass_arg") else 1

    @functools.wraps(function)  # also copies the mark by which jinja2 knows to pass the environment or the context
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
    """Check the path of an attribute.

    Raises:
        TemplateError: it is long, or has many parts.
    """
    if isinstance(attribute, str):
        parts = attribute.count(".") + attribute.count(",") + 1
        if len(attribute) > ATTRIBUTE_LIMIT or parts > ATTRIBUTE_PARTS:
            raise TemplateError("it looks up an attribute of too many parts")


def check_pattern(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    """Check the arguments of a method that takes quadratic time: `strip`, `rfind` and their like.

    Raises:
        TemplateError: one of them is a long text.
    """
    if any(isinstance(value, str) and len(value) > PATTERN_LIMIT for value in (*args, *kwargs.values())):
        raise TemplateError(f"it strips or searches backwards for more than {PATTERN_LIMIT} characters")


@pass_context
def finalise(_context: Context, value: Any) -> str:
    """Return the text of a printed value, paid for."""  # with the context jinja2 does not call this when it compiles
    text = to_text(value)
    BUDGET.get().spend(len(text))
    return text


def to_text(value: Any) -> str:
    """Return `value` as a template prints it.

    Raises:
        TemplateError: it is not a plain value, or the budget is used up.
    """
    if isinstance(value, list | tuple | dict):
        BUDGET.get().spend_value(value)
    elif not isinstance(value, str | int | float | Undefined | None):
        raise TemplateError(f"it prints a {type(value).__name__}")
    return str(value)


def _concat(values: list[Any]) -> str:
    texts = [to_text(value) for value in values]
    BUDGET.get().spend(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _map(context: Context, value: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """jinja2's `map`, each result paid for before the next is made."""
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
    """Return the text of `value` with `old` replaced, paid for before it is made."""
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
    """JSON as transformers writes it into prompts: no HTML escapes."""
    if (indent or 0) > 16 or any(len(separator) > 8 for separator in separators or ()):
        raise TemplateError("it spreads JSON too wide")
    BUDGET.get().spend_value(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    # From pairs, `dict` hashes keys that a template can choose so that all of them collide.
    if not all(isinstance(value, dict) for value in args):
        raise TemplateError("it makes a namespace of something that is not a dict")
    return Namespace(*args, **kwargs)


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(f"{REFUSAL}{to_text(message)[:200]}")


def _strftime_now(pattern: str) -> str:
    # Digits between % and the letter are a width, by which a few characters can ask for any amount of memory.
    if len(pattern) > 100 or re.search(r"%[^a-zA-Z%]", pattern):
        raise TemplateError("it uses a date format that is not allowed")
    return datetime.datetime.now().strftime(pattern)
