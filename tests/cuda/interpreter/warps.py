"""What the lanes of a warp compute together.

`warps` is a `Warps`: which lanes run. Values have one element per running lane, or are scalars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES = 32


@dataclass
class Warps:
    """The running lanes, warp by warp.

    Attributes:
        count: Number of running lanes.
        lane: Lane 0 … 31 of each.
        row: Row of each in arrays with one row per warp.
        rows: Number of warps.
        full: Whether all 32 lanes of each warp run.
        present: Bit mask of the running lanes of each warp.
    """

    count: int
    lane: np.ndarray
    row: np.ndarray
    rows: int
    full: bool
    present: np.ndarray

    def spread(self, value) -> np.ndarray:
        """Return values as (warps, 32); lanes that do not run have 0."""
        if self.full:
            return np.ascontiguousarray(np.broadcast_to(value, self.count)).reshape(-1, LANES)
        out = np.zeros((self.rows, LANES), np.asarray(value).dtype)
        out[self.row, self.lane] = value
        return out

    def gather(self, table: np.ndarray) -> np.ndarray:
        """Return the running lanes' elements of (warps, 32)."""
        return table.reshape(-1) if self.full else table[self.row, self.lane]

    def check(self, mask) -> None:
        """Check that all lanes in `mask` run, and each running lane is in its own mask.

        Raises:
            RuntimeError: A lane is missing.
        """
        masks = np.broadcast_to(np.asarray(mask, np.uint32), self.count)
        missing = masks & ~self.present[self.row]
        if missing.any():
            raise RuntimeError(f"lanes {missing[missing != 0][0]:#010x} of the mask do not take part")
        if not ((masks >> self.lane.astype(np.uint32)) & 1).all():
            raise RuntimeError("a lane takes part that is not in its mask")


def warps_of(where: np.ndarray) -> Warps:
    """Return the warps of sorted thread numbers."""
    warp = where >> 5
    numbers, row = np.unique(warp, return_inverse=True)
    lane = where & 31
    full = where.size == numbers.size * LANES
    present = np.bitwise_or.reduceat(np.uint32(1) << lane.astype(np.uint32), np.flatnonzero(np.diff(warp, prepend=-1)))
    return Warps(where.size, lane, row, numbers.size, full, present)


def shuffle(warps, mode, value, lane, clamp, mask):
    """Return (values of other lanes, whether the lane was in range), as `shfl.sync`.

    Raises:
        RuntimeError: A lane reads one that does not take part.
    """
    warps.check(mask)
    own = warps.lane.astype(np.int64)
    other = np.broadcast_to(np.asarray(lane).astype(np.int64) & 31, own.shape)
    bound, segment = np.asarray(clamp).astype(np.int64) & 31, (np.asarray(clamp).astype(np.int64) >> 8) & 31
    highest, lowest = (own & segment) | (bound & ~segment), own & segment
    source, inside = {
        "up": lambda: (own - other, own - other >= highest),
        "down": lambda: (own + other, own + other <= highest),
        "bfly": lambda: (own ^ other, (own ^ other) <= highest),
        "idx": lambda: (lowest | (other & ~segment), (lowest | (other & ~segment)) <= highest),
    }[mode]()
    source = np.where(inside, source, own)
    if not ((warps.present[warps.row] >> source.astype(np.uint32)) & 1).all():
        raise RuntimeError("a lane reads from one that does not take part")
    return warps.spread(value)[warps.row, source], inside


def vote(warps, mode, predicate, mask):
    """Return what `vote.sync` returns: a predicate, or the ballot's 32 bits."""
    warps.check(mask)
    votes = warps.spread(np.asarray(predicate, np.bool_))
    ballot = (votes.astype(np.uint64) << np.arange(LANES, dtype=np.uint64)).sum(1).astype(np.uint32)[warps.row]
    masks = np.broadcast_to(np.asarray(mask, np.uint32), warps.count)
    ballot = ballot & masks
    results = {"ballot": ballot, "any": ballot != 0, "all": ballot == masks, "uni": (ballot == 0) | (ballot == masks)}
    return results[mode]


def active_mask(warps):
    """Return the running lanes of each lane's warp."""
    return warps.present[warps.row]


def reduce_lanes(warps, name, value, mask):
    """Return the sum, minimum, … over the lanes of a mask that is the same in the whole warp."""
    warps.check(mask)
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions.update({"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor})
    if not warps.full or (np.broadcast_to(mask, warps.count) != 0xFFFFFFFF).any():
        raise NotImplementedError("redux of a part of a warp")
    spread = warps.spread(value)
    return np.repeat(functions[name].reduce(spread, 1, dtype=spread.dtype), LANES)
