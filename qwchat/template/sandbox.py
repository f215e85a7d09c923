"""Running a chat template that may be hostile.

A template is a program that comes with a model, and jinja2's sandbox keeps it from Python's internals but not from
running for ever or asking for all memory. A Python thread cannot be stopped from outside, so nothing is allowed to
start that does not end soon:

- Only the language that chat templates use is let in: node types, filters, methods and globals are positive lists.
- Whatever makes a value (operators, calls, filters, literals, output) pays for its size from a budget, beforehand where
  the result can be much larger than its operands, so that the sum of all values made in one rendering is bounded.
- Every turn of a loop, call, comparison and test checks the processor time used.

The hooks are the sandbox's own (`call`, `call_binop`, `is_safe_attribute`), jinja2's `finalize`, and a rewriting of
the syntax tree that sends loops, literals, slices, comparisons and filter results through filters of this module.
Constant folding is off, since it would compute outside a budget.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import LoopControlExtension
from jinja2.filters import FILTERS, make_attrgetter, sync_do_map
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace, pass_context, pass_environment
from jinja2.visitor import NodeTransformer

from qwchat.errors import TemplateError

SOURCE_LIMIT = 1 << 15  # characters; the longest published chat templates have about 20,000
CPU_BASE, CPU_PER_CHARACTER = 0.25, 1e-7  # seconds of the rendering thread; a real template takes about 0.1 ms
WORK_BASE, WORK_PER_CHARACTER = 4_000_000, 32  # characters made in one rendering: a base, and a multiple of the input
CALL_DEPTH = 50
INTEGER_BITS = 4096

STEPS, VALUE, CONCAT = "limit steps", "limit value", "limit concat"  # no template can write a name with a space

FILTER_NAMES = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length"),
    *("list", "lower", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort"),
    *("title", "trim", "unique", "upper"),
)
STRING_METHODS = (
    *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace"),
    *("isupper", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rpartition"),
    *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
)
SAFE_METHODS: dict[type, tuple[str, ...]] = {
    str: STRING_METHODS,
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
}
NODE_TYPES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef),
    *(nodes.Assign, nodes.AssignBlock, nodes.For, nodes.If, nodes.CondExpr, nodes.With, nodes.Break, nodes.Continue),
    *(nodes.Macro, nodes.CallBlock, nodes.Call, nodes.Keyword, nodes.Filter, nodes.Test),
    *(nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Getattr, nodes.Getitem, nodes.Slice),
    *(nodes.BinExpr, nodes.UnaryExpr, nodes.Concat, nodes.Compare, nodes.Operand),
)


class _Budget:
    """What one rendering may still spend."""

    def __init__(self, input_length: int) -> None:
        self._work = WORK_BASE + WORK_PER_CHARACTER * input_length
        self._deadline = time.thread_time() + CPU_BASE + CPU_PER_CHARACTER * input_length
        self.depth = 0

    def spend(self, work: int) -> None:
        """Pay for `work` characters or steps.

        Raises:
            TemplateError: the budget is used up.
        """
        self._work -= work + 1
        if self._work < 0:
            raise TemplateError("it makes more text than a chat template can need")
        if time.thread_time() > self._deadline:
            raise TemplateError("it runs for longer than a chat template can need")

    def spend_value(self, value: Any) -> Any:
        """Pay for a value with all it holds, repeated parts counted each time, and return it."""
        pending = [value]
        while pending:
            item = pending.pop()
            self.spend(len(item) if isinstance(item, str | list | tuple | dict) else 0)
            if isinstance(item, dict):
                pending += item.keys()
                pending += item.values()
            elif isinstance(item, list | tuple):
                pending += item
            elif item is not value and not isinstance(item, str | int | float | Undefined | None):
                raise TemplateError(f"it puts a {type(item).__name__} into a list")
        return value


_BUDGET: ContextVar[_Budget] = ContextVar("qwchat_template_budget")


class _LimitedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the limits of this module, set up like transformers' (block trimming, loop controls)."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension],
            optimized=False,
            finalize=_finalise,
            cache_size=0,
        )
        self.filters = {name: FILTERS[name] for name in FILTER_NAMES}
        self.filters |= {
            "join": _join,
            "map": _map,
            "replace": _replace,
            "string": _text,
            "tojson": _to_json,
            "safe": lambda v: v,
        }
        self.filters |= {STEPS: _steps, VALUE: lambda v: _BUDGET.get().spend_value(v), CONCAT: _concat}
        self.globals = {
            "range": safe_range,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext | Namespace):
            return not attr.startswith("_")
        return any(attr in names for kind, names in SAFE_METHODS.items() if isinstance(obj, kind))

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise TemplateError(f"it reaches for {attribute!r} of a {type(obj).__name__}, which is not allowed")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return None  # str.format stays unsafe: one format specifier can ask for any amount of memory

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.spend(0)
        if budget.depth >= CALL_DEPTH:
            raise TemplateError(f"its macros call each other more than {CALL_DEPTH} deep")
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and obj.__name__ == "replace":
            obj = functools.partial(_replace, owner)
        budget.depth += 1
        try:
            return budget.spend_value(super().call(context, obj, *args, **kwargs))
        finally:
            budget.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        if operator == "%" and isinstance(left, str):
            raise TemplateError("it formats text with %, which is not allowed")
        if isinstance(left, int) and isinstance(right, int):
            power = operator == "**"
            bits = left.bit_length() * abs(right) if power else left.bit_length() + right.bit_length()
            if bits > INTEGER_BITS:
                raise TemplateError("it computes with too large numbers")
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and isinstance(sequence, str | list | tuple):
                budget.spend(len(sequence) * max(times, 0))
        return budget.spend_value(super().call_binop(context, operator, left, right))


class _Limiter(NodeTransformer):
    """Refuses what is not in `NODE_TYPES` and sends the rest through the filters of this module."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(node, NODE_TYPES):
            raise TemplateError(f"it uses {type(node).__name__.lower()} in line {node.lineno}, which is not allowed")
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateError(f"it uses a recursive loop in line {node.lineno}, which is not allowed")
        node = self.generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = self._through(STEPS, cast(nodes.Expr, node.iter))
        elif isinstance(node, nodes.TemplateData):  # as a constant it is paid for whenever it is printed
            return nodes.Const(node.data, lineno=node.lineno)
        elif isinstance(node, nodes.Concat):
            return self._through(CONCAT, nodes.List(node.nodes, lineno=node.lineno))
        return self._through(VALUE, cast(nodes.Expr, node)) if _makes_value(node) else node

    def _through(self, name: str, node: nodes.Expr) -> nodes.Filter:
        limited = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        limited.set_environment(self._environment)
        return limited


def _makes_value(node: nodes.Node) -> bool:
    """Whether the node makes a value, or compares some, without passing `call` or `call_binop`."""
    if isinstance(node, nodes.Tuple):
        return node.ctx == "load"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Slice)
    return isinstance(node, nodes.List | nodes.Dict | nodes.Compare | nodes.Test | nodes.Filter)


class SandboxedTemplate:
    """A compiled template.

    Args:
        source: jinja2 source.
        where: names the template in errors.

    Raises:
        TemplateError: the source is too long, has a syntax error, or uses what is not allowed.
    """

    def __init__(self, source: str, where: str) -> None:
        self._where = where
        if len(source) > SOURCE_LIMIT:
            raise self._error(f"it has {len(source):,} characters, more than the {SOURCE_LIMIT:,} allowed")
        environment = _LimitedEnvironment()
        try:
            tree = _Limiter(environment).visit(environment.parse(source))
            self._template = environment.from_string(tree)
        # A foreign program: whatever it provokes in the compiler (recursion, overflow, ...) is its own fault.
        except Exception as error:
            raise self._error(_reason(error)) from error

    def render(self, variables: Mapping[str, Any], input_length: int) -> str:
        """The rendered text.

        Args:
            variables: names the template sees; values made of str, int, float, bool, None, list and dict.
            input_length: characters in `variables`, from which the limits on text and time are derived.

        Raises:
            TemplateError: the template fails, refuses its input (`raise_exception`), or exceeds a limit.
        """
        token = _BUDGET.set(_Budget(input_length))
        try:
            return self._template.render(variables)
        except Exception as error:
            raise self._error(_reason(error)) from error
        finally:
            _BUDGET.reset(token)

    def _error(self, reason: str) -> TemplateError:
        return TemplateError(f"the chat template in {self._where} cannot be used: {reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = " ".join(str(error).split())[:200]
    line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{text or type(error).__name__}{line}"


@pass_context
def _finalise(_context: Context, value: Any) -> str:
    """Every printed value. Taking the context keeps jinja2 from calling this at compile time."""
    text = _text(value)
    _BUDGET.get().spend(len(text))
    return text


def _text(value: Any) -> str:
    """`value` as a template prints it."""
    if isinstance(value, list | tuple | dict):
        _BUDGET.get().spend_value(value)
    elif not isinstance(value, str | int | float | Undefined | None):
        raise TemplateError(f"it prints a {type(value).__name__}")
    return str(value)


def _steps(iterable: Iterable[Any]) -> Iterator[Any]:
    budget = _BUDGET.get()
    budget.spend(0)
    for item in iterable:
        budget.spend(0)
        yield item


def _concat(values: list[Any]) -> str:
    texts = [_text(value) for value in values]
    _BUDGET.get().spend(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _map(context: Context, value: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """jinja2's `map`, each result paid for before the next is made."""
    return map(_BUDGET.get().spend_value, sync_do_map(context, value, *args, **kwargs))


@pass_environment
def _join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    texts = [_text(item) for item in items]
    _BUDGET.get().spend(sum(map(len, texts)) + len(d) * len(texts))
    return d.join(texts)


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = _text(value)
    found = text.count(old)
    _BUDGET.get().spend(len(text) + found * len(new))
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
    _BUDGET.get().spend_value(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(f"it refuses this conversation: {_text(message)[:200]}")


def _strftime_now(pattern: str) -> str:
    # Digits between % and the letter are a width, by which a few characters can ask for any amount of memory.
    if len(pattern) > 100 or re.search(r"%[^a-zA-Z%]", pattern):
        raise TemplateError("it uses a date format that is not allowed")
    return datetime.datetime.now().strftime(pattern)
