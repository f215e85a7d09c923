"""What one rendering of a chat template may spend.

Every construct that makes, copies or shares a value pays for the whole value, repeated parts counted each time. Hence
no value can have more parts than the budget, and an operation that walks through a value (a comparison, a hash, a
search) takes a bounded time even where it runs in C and cannot be interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.runtime import Undefined

from qwchat.errors import TemplateError

CPU_BASE, CPU_PER_CHARACTER = 0.25, 1e-6  # seconds of the rendering thread; a real one takes 0.1 ms for each turn
WORK_BASE, WORK_PER_CHARACTER = 4_000_000, 32  # characters made in one rendering: a base, and a multiple of the input
INTEGER_BITS = 4096

PLAIN = (str, int, float, list, tuple, dict, Undefined, type(None))
"""The types that values of templates are made of."""


class Budget:
    """The work and the processor time that one rendering has left.

    Args:
        input_length: characters of the variables that the template sees.

    Attributes:
        depth: calls that are being made, one within the other.
    """

    def __init__(self, input_length: int) -> None:
        self._work = WORK_BASE + WORK_PER_CHARACTER * input_length
        self._deadline = time.thread_time() + CPU_BASE + CPU_PER_CHARACTER * input_length
        self.depth = 0

    def spend(self, work: int) -> None:
        """Pay for `work` characters or steps.

        Raises:
            TemplateError: the budget or the time is used up.
        """
        self._work -= work + 1
        if self._work < 0:
            raise TemplateError("it makes more text than a chat template can need")
        if time.thread_time() > self._deadline:
            raise TemplateError("it runs for longer than a chat template can need")

    def spend_value(self, value: Any) -> Any:
        """Pay for a value with all of its parts, and return it.

        An iterator is returned as one that pays for each step.

        Raises:
            TemplateError: the budget is used up, or the value has a part that no list may have.
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
                raise TemplateError("it computes with too large numbers")
            elif item is not value and not isinstance(item, PLAIN):
                raise TemplateError(f"it puts a {type(item).__name__} into a list")
        return value

    def spend_arguments(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        """Pay for the arguments of a call: the function may make a tuple or a dict of them (`varargs`, `kwargs`).

        Raises:
            TemplateError: the budget is used up.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, PLAIN):
                self.spend_value(value)
            else:  # a macro, a namespace, an iterator: compared by identity
                self.spend(0)

    def steps(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The items of `iterable`, each step paid for.

        Raises:
            TemplateError: the budget is used up.
        """
        self.spend(0)
        for item in iterable:
            self.spend(0)
            yield item


BUDGET: ContextVar[Budget] = ContextVar("qwchat_template_budget")
"""The budget of the rendering that this context belongs to."""
