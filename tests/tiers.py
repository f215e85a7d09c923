"""The two tiers of the tests: quick and complete.

Long tests are marked `slow`. A test that repeats the same thing does so less often in the quick tier: `count` returns
the number of repetitions, and `some` the cases.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Case = TypeVar("Case")

everything = False
"""True if the slow tests run too; set before the tests are imported."""


def count(full: int, few: int) -> int:
    """Return the number of repetitions: `full` with the slow tests, otherwise `few`."""
    return full if everything else few


def some(cases: Iterable[Case], every: int) -> list[Case]:
    """Return all cases with the slow tests, otherwise one in `every`."""
    return [*cases][:: 1 if everything else every]
