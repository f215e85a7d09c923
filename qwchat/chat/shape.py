"""What a reply must look like, and what to say of one that does not."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from qwchat.events import Done

if TYPE_CHECKING:
    from qwchat.constraints import Constraint

KINDS = ("choices", "regex", "json-schema")  # knobs of which one at most is set


class Chosen(Protocol):
    """Where the knobs are: Controls."""

    def __getitem__(self, name: str) -> Any: ...


def constraint_of(controls: Chosen) -> Constraint | None:
    """The constraint that the knobs set; None without one."""
    name = next((name for name in KINDS if controls[name] is not None), None)
    return None if name is None else _constraint(name, controls[name])


@lru_cache(maxsize=8)
def _constraint(name: str, value: Any) -> Constraint:
    from qwchat.constraints import Constraint

    if name == "choices":
        return Constraint.listed(value)
    return Constraint.regex(value) if name == "regex" else Constraint.json_schema(value)


def complaint(done: Done, controls: Chosen, max_tokens: int | None, *, chat: bool = False) -> str | None:
    """Say why a reply does not meet its constraint; None where it does, has none, or was stopped by the person.

    `chat`: name settings as the chat sets them, not as flags.
    """
    if done.meets_constraint is not False or done.finish_reason == "cancelled":
        return None
    name = next(name for name in KINDS if controls[name] is not None)
    flag, change, without = ("", "/set ", "/set stop none") if chat else ("--", "--", "leave --stop out")
    reasons = {
        "length": f"it was cut at {flag}max-tokens {max_tokens}: allow more",
        "context": f"the context of {done.stats.context:,} tokens is full: {change}ctx N allows a longer one",
        "repetition": f"it repeated itself and was ended: {change}loop-guard 0 lets it go on",
        "stop": f"a stop string ended it: {without}",
    }
    return f"the reply does not meet {flag}{name}: {reasons[done.finish_reason]}"
