"""Choose a format for each matrix so that a model fits a number of bytes and loses little.

The loss of a model is taken as the sum of the losses of its matrices. Each matrix starts with its smallest option.
Larger ones are steps; only those on the lower convex hull of (bytes, loss) are considered, so that the steps of a
matrix gain less and less per byte. All steps are taken in the order of their gain per byte, as far as they fit; after a
step that does not fit, its matrix stays as it is.

This is the greedy solution of a multiple-choice knapsack. Its loss exceeds the least possible one by less than the gain
of the first step that did not fit, since the steps before it are the best use of their bytes. A larger budget never
gives a larger loss: after a step that only the larger budget has bytes for, the smaller one has fewer bytes than that
step needs, and gains less per byte with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A format that a matrix can have.

    Attributes:
        format: its name.
        nbytes: bytes of the matrix in it.
        loss: loss of the model if only this matrix has it, in any unit.
    """

    format: str
    nbytes: int
    loss: float


@dataclass(frozen=True)
class _Step:
    """Change of a matrix to a larger format."""

    gain_per_byte: float
    order: tuple[int, int]  # number of the matrix and of the step, which decide between equal gains
    name: str
    format: str
    nbytes: int  # more than before


def allocate(matrices: Mapping[str, Sequence[Option]], budget: int) -> dict[str, str]:
    """Return the format of each matrix.

    Args:
        matrices: name -> its options, at least one.
        budget: most bytes of all matrices together, at least those of their smallest options.
    """
    steps: list[_Step] = []
    chosen: dict[str, str] = {}
    for number, (name, options) in enumerate(matrices.items()):
        smallest, *larger = _hull(options)
        chosen[name] = smallest.format
        budget -= smallest.nbytes
        for place, (before, after) in enumerate(zip([smallest, *larger], larger, strict=False)):
            more = after.nbytes - before.nbytes
            steps.append(_Step((before.loss - after.loss) / more, (number, place), name, after.format, more))
    final: set[str] = set()
    for step in sorted(steps, key=lambda step: (-step.gain_per_byte, step.order)):
        if step.name in final:
            continue
        if step.nbytes <= budget:
            chosen[step.name] = step.format
            budget -= step.nbytes
        else:
            final.add(step.name)
    return chosen


def smallest_size(matrices: Mapping[str, Sequence[Option]]) -> int:
    """Return the bytes of all matrices in their smallest options."""
    return sum(min(option.nbytes for option in options) for options in matrices.values())


def largest_size(matrices: Mapping[str, Sequence[Option]]) -> int:
    """Return the bytes of all matrices in their largest options."""
    return sum(max(option.nbytes for option in options) for options in matrices.values())


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull, from the smallest to the largest.

    A larger option counts as at least as good as the smaller ones: a measured difference the other way is noise.
    """
    hull: list[Option] = []
    least = float("inf")
    for option in sorted(options, key=lambda each: (each.nbytes, each.loss)):
        least = min(least, option.loss)
        if hull and option.nbytes == hull[-1].nbytes:
            continue
        point = Option(option.format, option.nbytes, least)
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(before: Option, after: Option) -> float:
    return (after.loss - before.loss) / (after.nbytes - before.nbytes)
