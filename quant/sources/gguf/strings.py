"""Find the strings of a GGUF array: each is a u64 length followed by that many bytes.

Vocabularies have 150,000 tokens and as many merges, and their array must be passed to reach the tensors behind it. A
loop in Python needs 50 ms for that. Strings of 1 to 255 bytes without NUL are found faster: the only zeros among them
are the seven upper bytes of each length. Whether that is so is checked for every string.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
_WINDOW = 128 << 10  # bytes searched at once
_ONE_BY_ONE = 1024  # strings stepped over in Python where the search does not apply


def string_positions(data: mmap.mmap, start: int, count: int, end: int) -> Iterator[Positions]:
    """Yield the positions of the length fields of `count` strings that begin at `start`, in pieces.

    Raises:
        ValueError: a string ends after `end`.
    """
    position = start
    while count:
        found, after = _find_short(data, position, count, end)
        if not found.size:
            found, after = _step(data, position, min(count, _ONE_BY_ONE), end)
        yield found
        count -= found.size
        position = after


def _find_short(data: mmap.mmap, start: int, count: int, end: int) -> tuple[Positions, int]:
    """Return the positions of the next strings, up to one that is empty, long or contains NUL, and the end of the last.

    At most `count` strings are returned, and those within the next `_WINDOW` bytes.
    """
    window = np.frombuffer(data, np.uint8, min(_WINDOW, end - start), start)
    zeros = np.flatnonzero(window == 0)
    runs = zeros[: zeros.size // 7 * 7].reshape(-1, 7)[:count]
    if not runs.size:
        return np.zeros(0, np.int64), start
    heads = runs[:, 0] - 1
    after = heads + 8 + window[heads]  # the head of a run at position 0 is -1, which the comparison below refuses
    follows = np.concatenate(([0], after[:-1]))
    valid = (heads == follows) & (runs[:, 6] - runs[:, 0] == 6) & (after <= window.size)
    number = heads.size if valid.all() else int(valid.argmin())
    return heads[:number] + start, start + int(after[number - 1]) if number else start


def _step(data: mmap.mmap, start: int, count: int, end: int) -> tuple[Positions, int]:
    """Return the positions of the next `count` strings of any length, and the end of the last."""
    positions = np.empty(count, np.int64)
    position = start
    for number in range(count):
        positions[number] = position
        position += 8 + int.from_bytes(data[position : position + 8], "little")
        if position > end:
            raise ValueError(f"string at byte {int(positions[number]):,} ends after byte {end:,}")
    return positions, position
