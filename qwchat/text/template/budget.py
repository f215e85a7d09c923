"""Budget of work and processor time for rendering one chat template.

Every construct that creates, copies or shares a value pays for the whole value, and repeated parts count each time.
Hence no value can have more parts than the budget, and every operation that walks through a value (comparison, hash,
search) takes a bounded time, even if it runs in C and cannot be interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.runtime import Undefined

from qwchat.errors import TemplateError

CPU_BASE, CPU_PER_CHARACTER = 0.25, 1e-6  # seconds of the rendering thread; real templates take 0.1 ms per turn
WORK_BASE, WORK_PER_CHARACTER = 4_000_000, 32  # characters created in one rendering
INTEGER_BITS = 4096

PLAIN = (str, int, float, list, tuple, dict, Undefined, type(None))
"""Types of the values of templates."""


class Budget:
    """Work and processor time that one rendering may still spend.

    Args:
        input_length: number of characters in the variables of the template.

    Attributes:
        depth: current depth of nested calls.
    """

    def __init__(self, input_length: int) -> None:
        self._work = WORK_BASE + WORK_PER_CHARACTER * input_length
        self._deadline = time.thread_time() + CPU_BASE + CPU_PER_CHARACTER * input_length
        self.depth = 0

    def spend(self, work: int) -> None:
        """Pay for `work` characters or steps.

        Raises:
            TemplateError: the budget or the time is exhausted.
        """
        self._work -= work + 1
        if self._work < 0:
            raise TemplateError("it creates more text than any chat template needs")
        if time.thread_time() > self._deadline:
            raise TemplateError("it runs longer than any chat template needs")

    def spend_value(self, value: Any) -> Any:
        """Pay for a value with all its parts and return it. An iterator pays for each step when it is used.

        Raises:
            TemplateError: the budget is exhausted, or the value has a part of a type that is not allowed.
        """
        if isinstance(value, Iterator):
            return self.steps(value)
        pending = [value]
        while pending:
            item = pending.pop()
            self.spend(len(item) if isinstance(item, str | list | tuple | dict) else 0)
            if isinstance(item, dict):
                pending += item.keys()
                pending += item.values()
            elif isinstance(item, list | tuple):
                pending += item
            elif isinstance(item, int) and item.bit_length() > INTEGER_BITS:
                raise TemplateError("its numbers are too large")
            elif item is not value and not isinstance(item, PLAIN):
                raise TemplateError(f"it puts a {type(item).__name__} into a list, which is not allowed")
        return value

    def spend_arguments(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        """Pay for the arguments of a call, since the function may put them into a tuple or dict (`varargs`, `kwargs`).

        Raises:
            TemplateError: the budget is exhausted.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, PLAIN):
                self.spend_value(value)
            else:  # a macro, a namespace, an iterator: compared by identity
                self.spend(0)

    def steps(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """Yield the items of `iterable` and pay for each step.

        Raises:
            TemplateError: the budget is exhausted.
        """
        self.spend(0)
        for item in iterable:
            self.spend(0)
            yield item


BUDGET: ContextVar[Budget] = ContextVar("qwchat_template_budget")
"""Budget of the current rendering."""
