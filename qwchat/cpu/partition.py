"""How the items of a stage are handed out to the members of the team."""

from __future__ import annotations

from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.records import GEMV_TOKENS
from qwchat.cpu.kernels.scheduler import claim


@inlined
def _next_round(remaining, size, tokens):
    """How many of the items that are `remaining` a round hands out, and in how many pieces.

    Each round leaves less for the next, so that nobody waits long for the last piece.  With few tokens the weights
    stream from memory and every piece begins a new stream, so there are few of them; with many a piece takes long, and
    smaller ones even out a core that is slow or taken.
    """
    if tokens <= GEMV_TOKENS:
        handed_out = remaining - remaining // 4
        return handed_out, min(size, handed_out)
    handed_out = remaining - remaining // 2
    return handed_out, min(2 * size, handed_out)


@kernel
def range_count(items, size, tokens):
    """How many ranges :func:`claim_range` makes of `items`."""
    total = 0
    while items > 0:
        handed_out, parts = _next_round(items, size, tokens)
        total += parts
        items -= handed_out
    return total


@kernel
def claim_range(team, member, size, items, ranges, tokens):
    """The next of the `ranges` of `items` as (begin, end); (items, items) when there is none left."""
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
