"""Codes of 4 or 8 bits in 32-bit words, the first code in the lowest bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.integer import BYTE_BITS

WORD_BITS = 32
_BLOCK_ELEMENTS = 1 << 16


def words_for(count: int, bits: int) -> int:
    """Return the number of words that hold `count` codes."""
    return -(-count * bits // WORD_BITS)


def unpack(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Return the codes (rows, W * 32 / bits) u8 of words (rows, W)."""
    if bits == BYTE_BITS:
        return np.array(words, order="C").view(np.uint8)
    data = np.ascontiguousarray(words).view(np.uint8)
    codes = np.empty((data.shape[0], 2 * data.shape[1]), np.uint8)
    np.bitwise_and(data, 15, out=codes[:, 0::2])
    np.right_shift(data, 4, out=codes[:, 1::2])
    return codes


def unpack_columns(words: NDArray[np.int32], bits: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Return the codes of columns `start` to `stop`, exclusive, of rows that are packed along the columns."""
    per_word = WORD_BITS // bits
    first = start // per_word
    codes = unpack(words[:, first : -(-stop // per_word)], bits)
    return codes[:, start - first * per_word : stop - first * per_word]


def all_equal(words: NDArray[np.int32], bits: int, code: int) -> bool:
    """Return whether every code is `code`."""
    return all(bool((unpack(block, bits) == code).all()) for block in row_blocks(words))


def contains(words: NDArray[np.int32], bits: int, code: int) -> bool:
    """Return whether any code is `code`."""
    return any(bool((unpack(block, bits) == code).any()) for block in row_blocks(words))


def row_blocks(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Return consecutive parts of a matrix of about 65,000 elements each, so that checks need little memory."""
    rows, columns = array.shape
    step = max(1, _BLOCK_ELEMENTS // columns)
    return [array[start : start + step] for start in range(0, rows, step)]
