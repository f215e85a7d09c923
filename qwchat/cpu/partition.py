"""Split the items of a stage into ranges that the members of the team claim one after another."""

from __future__ import annotations

from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.records import GEMV_TOKENS
from qwchat.cpu.kernels.scheduler import claim


@inlined
def _next_round(remaining, size, tokens):
    """Return how many of `remaining` items the next round hands out, and in how many ranges.

    Each round leaves fewer items for the next, so that no member waits long for the last range. With few tokens the
    weights stream from memory and every range begins a new stream, so ranges are large and few. With many tokens a
    range takes long, and smaller ones even out a core that is slow or shared.
    """
    if tokens <= GEMV_TOKENS:
        handed_out = remaining - remaining // 4
        return handed_out, min(size, handed_out)
    handed_out = remaining - remaining // 2
    return handed_out, min(2 * size, handed_out)


@kernel
def range_count(items, size, tokens):
    """Return the number of ranges that `claim_range` makes of `items`."""
    total = 0
    while items > 0:
        handed_out, parts = _next_round(items, size, tokens)
        total += parts
        items -= handed_out
    return total


@kernel
def claim_range(team, member, size, items, ranges, tokens):
    """Claim the next range of items; return (begin, end), or (items, items) if none is left.

    Args:
        team: address of the team's memory.
        member: number of this member.
        size: number of members.
        items: number of items of the stage.
        ranges: `range_count(items, size, tokens)`.
        tokens: tokens of the step.
    """
    number = claim(team, member, ranges)
    if number < 0:
        return items, items
    begin = 0
    while True:
        handed_out, parts = _next_round(items - begin, size, tokens)
        if number < parts:
            return begin + number * handed_out // parts, begin + (number + 1) * handed_out // parts
        number -= parts
        begin += handed_out
