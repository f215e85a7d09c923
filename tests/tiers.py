"""The two tiers of the tests: what a person waits for, and everything.

What takes long is marked `slow`. Where one test repeats the same thing often, the quick tier repeats it less often:
`count` gives the number, and `some` the cases.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Case = TypeVar("Case")

everything = False
"""Whether the slow tests run, too. Set before the tests are imported."""


def count(full: int, few: int) -> int:
    """Return how often a test repeats what it does: `full` where the slow tests run, too, and else `few`."""
    return full if everything else few


def some(cases: Iterable[Case], every: int) -> list[Case]:
    """Return all cases where the slow tests run, too, and else one of `every` in turn."""
    return [*cases][:: 1 if everything else every]
