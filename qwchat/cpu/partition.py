"""How the items of a phase are handed out to the members of the team."""

from __future__ import annotations

from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.records import GEMV_TOKENS
from qwchat.cpu.kernels.scheduler import take


@inlined
def _round(left, size, tokens):
    """How many of the items that are `left` a round hands out, and in how many pieces.

    Each round leaves less for the next, so that nobody waits long for the last piece.  With few tokens the weights
    stream from memory and every piece begins a new stream, so there are few of them; with many a piece takes long, and
    smaller ones even out a core that is slow or taken.
    """
    if tokens <= GEMV_TOKENS:
        handed = left - left // 4
        return handed, min(size, handed)
    handed = left - left // 2
    return handed, min(2 * size, handed)


@kernel
def pieces_of(items, size, tokens):
    """How many pieces :func:`share` makes of `items`."""
    total = 0
    while items > 0:
        handed, parts = _round(items, size, tokens)
        total += parts
        items -= handed
    return total


@kernel
def share(team, member, size, items, pieces, tokens):
    """The next of the `pieces` of `items` as (begin, end); (items, items) when there is none left."""
    piece = take(team, member, pieces)
    if piece < 0:
        return items, items
    begin = 0
    while True:
        handed, parts = _round(items - begin, size, tokens)
        if piece < parts:
            return begin + piece * handed // parts, begin + (piece + 1) * handed // parts
        piece -= parts
        begin += handed
