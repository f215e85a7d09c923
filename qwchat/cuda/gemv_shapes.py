"""How the matrix-vector kernels are launched for a matrix: variant, warps per tile, grid and shared memory.

`qwchat.cuda.kernels.gemv` documents the kernels.
"""

from __future__ import annotations

_WARPS = 8
_WANTED_WARPS = 2048
"""Warps that keep the memory of a large GPU busy; a constant, so that results do not depend on the GPU."""
_GROUP = 32
MAX_ROWS = 8
"""Tokens of the largest variant."""


def variant(rows: int) -> int:
    """Return the number in the name of the kernel for `rows` tokens (1 to 8): 1, 2 or 8."""
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"the matrix-vector kernels take 1 to {MAX_ROWS} tokens, not {rows}")
    return rows if rows <= 2 else MAX_ROWS


def split(tiles: int, *, gate_up: bool = False) -> int:
    """Return log2 of the warps that share a tile. It depends on the matrix alone: other values give other bits.

    Args:
        tiles: tiles of 16 rows; of gate and up together.
        gate_up: whether gate and up are computed by one kernel, whose largest value is 1.
    """
    largest = 1 if gate_up else 3
    return next((split for split in range(largest) if tiles << split >= _WANTED_WARPS), largest)


def units(tiles: int, split: int, rows: int, *, dense: bool = False) -> int:
    """Return the units of work, which is the largest useful grid.

    Args:
        tiles: tiles of 16 rows.
        split: log2 of the warps that share a tile.
        rows: tokens; from 3 on a warp computes two tiles.
        dense: whether the matrix is bf16 or f32, where it never does.
    """
    slots = (_WARPS * (2 if variant(rows) == MAX_ROWS and not dense else 1)) >> split
    return -(-tiles // slots)


def norm_bytes(rows: int, columns: int) -> int:
    """Return the dynamic shared memory of an integer kernel with RMSNorm in front: codes and records of its tokens."""
    return rows * (columns // _GROUP | 1) * (_GROUP + 8)
