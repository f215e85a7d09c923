"""Render a chat template that may be hostile.

A template is a program that comes with a model. The sandbox of jinja2 keeps it away from Python's internals, but not
from running for ever or using all memory. A Python thread cannot be stopped from outside, so every operation must end
soon:

- Only the language of chat templates is allowed: node types, filters, methods and globals are positive lists.
- Everything that creates a value (operators, calls and their arguments, filters, literals, output) pays for its size
  from a budget, in advance if the result can be much larger than its operands. The sum of all values of a rendering is
  therefore bounded.
- Every loop iteration, call, comparison and test checks the processor time.

The hooks are those of the sandbox (`call`, `call_binop`, `is_safe_attribute`), `finalize` of jinja2, and a rewriting of
the syntax tree that sends loops, literals, slices, comparisons and filter results through
`qwchat.text.template.filters`. Constant folding is off because it would compute without a budget.

Templates that are not published run here in a worker process (`qwchat.text.template.isolated`). If they bypass this
module, the process is killed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import LoopControlExtension
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from qwchat.errors import TemplateError
from qwchat.text.template.budget import BUDGET, INTEGER_BITS, Budget
from qwchat.text.template.filters import (
    CONCAT,
    REFUSAL,
    STEPS,
    VALUE,
    check_pattern,
    filters,
    finalise,
    functions,
    replace,
)

SOURCE_LIMIT = 1 << 15  # characters; the longest published chat templates have about 20,000
CALL_DEPTH = 50
REMEDY = "restore the template from the model's source"
QUADRATIC_METHODS = ("lstrip", "rfind", "rpartition", "rsplit", "rstrip", "strip")

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


class _LimitedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2 sandbox with limits, configured as in transformers (block trimming, loop controls)."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension],
            optimized=False,
            finalize=finalise,
            cache_size=0,
        )
        self.filters = filters()
        self.globals = dict[str, Any](functions())

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext | Namespace):
            return not attr.startswith("_")
        return any(attr in names for kind, names in SAFE_METHODS.items() if isinstance(obj, kind))

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise TemplateError(f"it uses the attribute {attribute!r} of a {type(obj).__name__}, which is not allowed")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return None  # refuse str.format: one format specifier can demand any amount of memory

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.spend(0)
        if budget.depth >= CALL_DEPTH:
            raise TemplateError(f"its macro calls are nested more than {CALL_DEPTH} levels deep")
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and obj.__name__ == "replace":
            obj = functools.partial(replace, owner)
        elif isinstance(owner, str) and obj.__name__ in QUADRATIC_METHODS:
            check_pattern(args, kwargs)
        if (
            not isinstance(obj, Macro) or obj.catch_varargs or obj.catch_kwargs
        ):  # other macros only bind the values to names
            budget.spend_arguments(args, kwargs)
        budget.depth += 1
        try:
            return budget.spend_value(super().call(context, obj, *args, **kwargs))
        finally:
            budget.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = BUDGET.get()
        for operand in (left, right):
            if not isinstance(operand, str | int | float | list | tuple | Undefined | None):
                raise TemplateError(
                    f"it computes with a {type(operand).__name__}, which is not allowed"
                )  # set operations on dict views are not allowed
        if operator == "%" and isinstance(left, str):
            raise TemplateError("it formats text with %, which is not allowed")
        if isinstance(left, int) and isinstance(right, int):
            power = operator == "**"
            bits = left.bit_length() * abs(right) if power else left.bit_length() + right.bit_length()
            if bits > INTEGER_BITS:
                raise TemplateError("its numbers are too large")
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and isinstance(sequence, str | list | tuple):
                budget.spend(len(sequence) * max(times, 0))
        return budget.spend_value(super().call_binop(context, operator, left, right))


class _TreeRewriter(NodeTransformer):
    """Transformer that refuses nodes outside `NODE_TYPES` and sends the others through the limiting filters."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(node, NODE_TYPES):
            raise TemplateError(f"it uses {type(node).__name__.lower()} in line {node.lineno}, which is not allowed")
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateError(f"it uses a recursive loop in line {node.lineno}, which is not allowed")
        node = self.generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = self._filtered(STEPS, cast(nodes.Expr, node.iter))
        elif isinstance(node, nodes.TemplateData):  # a constant is paid for each time it is printed
            return nodes.Const(node.data, lineno=node.lineno)
        elif isinstance(node, nodes.Concat):
            return self._filtered(CONCAT, nodes.List(node.nodes, lineno=node.lineno))
        return self._filtered(VALUE, cast(nodes.Expr, node)) if _needs_budget(node) else node

    def _filtered(self, name: str, node: nodes.Expr) -> nodes.Filter:
        limited = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        limited.set_environment(self._environment)
        return limited


def _needs_budget(node: nodes.Node) -> bool:
    """Return whether a node creates or compares values without passing `call` or `call_binop`."""
    if isinstance(node, nodes.Tuple):
        return node.ctx == "load"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Slice)
    return isinstance(node, nodes.List | nodes.Dict | nodes.Compare | nodes.Test | nodes.Filter)


class SandboxedTemplate:
    """Compiled template.

    Args:
        source: jinja2 source.
        where: name of the template for messages.

    Raises:
        TemplateError: the source is too long, has a syntax error, or uses a construct that is not allowed.
    """

    def __init__(self, source: str, where: str) -> None:
        self._where = where
        if len(source) > SOURCE_LIMIT:
            raise self._error(f"it has {len(source):,} characters; at most {SOURCE_LIMIT:,} are allowed")
        environment = _LimitedEnvironment()
        try:
            tree = _TreeRewriter(environment).visit(environment.parse(source))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns about the code that jinja2 generates for odd templates
                self._template = environment.from_string(tree)
        # An untrusted program can cause any error in the compiler: recursion, overflow and others.
        except Exception as error:
            raise self._error(_error_reason(error)) from error

    def render(self, variables: Mapping[str, Any], input_length: int) -> str:
        """Return the rendered text.

        Args:
            variables: variables of the template, made of str, int, float, bool, None, list and dict.
            input_length: number of characters in `variables`; the limits on text and time depend on it.

        Raises:
            TemplateError: the template fails, refuses its input (`raise_exception`), or exceeds a limit.
        """
        token = BUDGET.set(Budget(input_length))
        try:
            return self._template.render(variables)
        except Exception as error:
            raise self._error(_error_reason(error)) from error
        finally:
            BUDGET.reset(token)

    def _error(self, reason: str) -> TemplateError:
        refused = reason.startswith(REFUSAL)  # the template itself says what is wrong with the conversation
        remedy = "" if refused else f": {REMEDY}"
        return TemplateError(f"the chat template in {self._where} cannot be used: {reason}{remedy}")


def _error_reason(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return str(error)
    if isinstance(error, MemoryError):
        return "it takes more memory than any chat template needs"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).split())[:200]
    line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{text or type(error).__name__}{line}"
