"""`mma` and `ldmatrix`: how matrices lie in the registers of a warp.

Source: PTX ISA, "Matrix fragments for mma" and "ldmatrix". In words of 32 bits: lane = 4 · group + inside; a word of A
holds consecutive columns of row `group`, a word of B consecutive rows of column `group`.
"""

from __future__ import annotations

import functools

import numpy as np

from tests.cuda.interpreter.conversions import bf16_to_float

GROUP, INSIDE = np.arange(32) // 4, np.arange(32) % 4
WIDTHS = {"s8": 4, "u8": 4, "f16": 2, "bf16": 2}
SHAPES = {
    **{((16, 8, 32), kind): (4, 2, 4) for kind in ("s8", "u8")},
    **{((16, 8, 16), kind): (2, 1, 4) for kind in ("s8", "u8")},
    **{((8, 8, 16), kind): (1, 1, 2) for kind in ("s8", "u8")},
    **{((16, 8, 16), kind): (4, 2, 4) for kind in ("f16", "bf16")},
    **{((16, 8, 8), kind): (2, 1, 4) for kind in ("f16", "bf16")},
}
"""Shape (m, n, k) and type of A -> words of A, words of B and sums per lane."""


@functools.cache
def _places(m, words_a, words_b, width, sums):
    """Return rows and columns of the elements: by (lane, word, element) of A and of B, by (lane, sum) of C."""
    halves = m // 8  # Words of A alternate between rows 0-7 and 8-15, then go on in k.
    a_rows, a_columns = np.zeros((2, 32, words_a, width), int)
    for word in range(words_a):
        for element in range(width):
            a_rows[:, word, element] = GROUP + 8 * (word % halves)
            a_columns[:, word, element] = width * INSIDE + element + 4 * width * (word // halves)
    b_rows, b_columns = np.zeros((2, 32, words_b, width), int)
    for word in range(words_b):
        for element in range(width):
            b_rows[:, word, element] = width * INSIDE + element + 4 * width * word
            b_columns[:, word, element] = GROUP
    c_rows, c_columns = np.zeros((2, 32, sums), int)
    for index in range(sums):
        c_rows[:, index] = GROUP + 8 * (index // 2)
        c_columns[:, index] = 2 * INSIDE + index % 2
    return (a_rows, a_columns), (b_rows, b_columns), (c_rows, c_columns)


def multiply_matrices(warps, shape, kinds, a, b, c):
    """Return the registers of A · B + C, as `mma.sync` with A by rows and B by columns.

    Args:
        warps: The running lanes; all 32 of each warp.
        shape: m, n and k.
        kinds: Types of D, A, B and C.
        a: Registers of A.
        b: Registers of B.
        c: The sums.

    Raises:
        RuntimeError: A part of a warp runs.
        NotImplementedError: The shape is not known.
    """
    if not warps.full:
        raise RuntimeError("mma by a part of a warp")
    if SHAPES.get((shape, kinds[1])) != (len(a), len(b), len(c)) or kinds[0] != kinds[3]:
        raise NotImplementedError(f"mma of shape {shape}, types {', '.join(kinds)}")
    m, n, k = shape
    width = WIDTHS[kinds[1]]
    places_a, places_b, places_c = _places(m, len(a), len(b), width, len(c))
    wide = np.float32 if kinds[0] == "s32" else np.float64  # Sums of 32 products of bytes are exact in float32.
    left, right = np.zeros((warps.rows, m, k), wide), np.zeros((warps.rows, k, n), wide)
    left[:, places_a[0], places_a[1]] = _elements(warps, a, kinds[1])
    right[:, places_b[0], places_b[1]] = _elements(warps, b, kinds[2])
    sums = np.stack([warps.spread(each) for each in c], 2)
    products = (left @ right)[:, places_c[0], places_c[1]]
    if kinds[0] == "s32":
        out = (products.astype(np.int64) + sums).astype(np.int32)
    else:
        out = (products + sums).astype(np.float32)
    return [np.ascontiguousarray(out[:, :, index]).reshape(-1) for index in range(len(c))]


def _elements(warps, registers, kind):
    """Return (warps, lane, register, element) of packed registers."""
    words = np.stack([warps.spread(each) for each in registers], 2)
    if kind == "bf16":
        return bf16_to_float(words.view(np.uint16)).reshape(*words.shape, 2)
    dtype = {"s8": np.int8, "u8": np.uint8, "f16": np.float16}[kind]
    return words.view(dtype).reshape(*words.shape, WIDTHS[kind])


def load_matrices(x, w, addresses, count, transposed, line):
    """Return registers of `count` matrices of 8 × 8 halves; lane 8 i + r has the address of row r of matrix i."""
    warps = x.warps(w)
    if not warps.full:
        raise RuntimeError("ldmatrix by a part of a warp")
    rows = warps.spread(addresses).astype(np.int64)[:, : 8 * count].reshape(-1)
    threads = np.broadcast_to(x.threads(w).reshape(-1, 32)[:, : 8 * count], (warps.rows, 8 * count)).reshape(-1)
    halves = x.shared_memory.load(rows, threads, 16, None, line, []).view(np.uint16).reshape(warps.rows, count, 8, 8)
    if transposed:
        halves = halves.swapaxes(2, 3)
    words = np.ascontiguousarray(halves).view(np.uint32).reshape(warps.rows, count, 32)
    return [np.ascontiguousarray(words[:, index]).reshape(-1) for index in range(count)]
