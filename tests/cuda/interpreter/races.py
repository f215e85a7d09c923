"""Races: two threads access the same bytes, one of them writes, and nothing orders the accesses.

Threads of a block are ordered by `bar.sync`, those of a warp by `bar.warp.sync` too; shuffles and matrix instructions
order nothing. A named barrier of some of the threads counts as one of the whole block.
"""

from __future__ import annotations

import numpy as np

_NOBODY, _MANY = -1, -2


class RaceError(RuntimeError):
    """Two accesses that nothing orders."""


class Clock:
    """Counts the barriers of each block and each warp of a wave.

    Attributes:
        block_of: Block of each thread.
        block_time: Barriers that each block has passed.
        warp_time: Barriers of the warp that each warp has passed.
    """

    def __init__(self, blocks: int, threads_per_block: int) -> None:
        self.block_of = np.repeat(np.arange(blocks, dtype=np.int64), threads_per_block)
        self.block_time = np.zeros(blocks, np.int32)
        self.warp_time = np.zeros(-(-blocks * threads_per_block // 32), np.int32)


class Races:
    """Who accessed each granule of a memory last.

    Args:
        clock: The barriers.
        size: Bytes of memory.
        granule: Bytes that are accessed together.
        name: For messages.
    """

    def __init__(self, clock: Clock, size: int, granule: int, name: str) -> None:
        self._clock, self._granule, self._name = clock, granule, name
        count = -(-size // granule)
        self._writer, self._reader, self._reader_warp = (np.full(count, _NOBODY, np.int32) for _ in range(3))
        self._write_time, self._read_time = (np.full(count, -1, np.int32) for _ in range(2))
        self._write_warp_time, self._read_warp_time = (np.zeros(count, np.int32) for _ in range(2))
        self._write_line, self._read_line = (np.zeros(count, np.int32) for _ in range(2))

    def read(self, offsets, threads, size, line, stride):
        """Check and note loads of `size` bytes at `offsets`; `stride` separates the blocks, for messages.

        Raises:
            RaceError: Another thread wrote there.
        """
        at, threads = self._granules(offsets, threads, size)
        warps, now = threads >> 5, self._clock.block_time[self._clock.block_of[threads]]
        self._check_writes(at, threads, warps, now, line, stride, "reads")
        stale = self._read_time[at] != now
        self._note(self._reader, at, threads, stale)
        self._note(self._reader_warp, at, warps, stale)
        self._read_time[at] = now
        self._read_warp_time[at] = self._clock.warp_time[warps]
        self._read_line[at] = line

    def write(self, offsets, threads, size, line, stride, effect=None):
        """Check and note stores. Storing what is there already, or what others store too, is harmless.

        Raises:
            RaceError: Another thread wrote or read there.
        """
        at, threads = self._granules(offsets, threads, size)
        warps, now = threads >> 5, self._clock.block_time[self._clock.block_of[threads]]
        repeat = at.size // offsets.size
        changed = np.repeat(~effect.unchanged, repeat) if effect else np.ones(at.size, bool)
        self._check_writes(at, threads, warps, now, line, stride, "writes", changed)
        reader, reader_warp = self._reader[at], self._reader_warp[at]
        unordered = (self._read_time[at] == now) & (reader != threads) & (reader != _NOBODY) & changed
        if unordered.any():
            unordered &= (reader_warp != warps) | (self._read_warp_time[at] >= self._clock.warp_time[warps])
            self._report(unordered, at, threads, line, stride, "writes", "read", self._read_line, self._reader)
        self._writer[at] = threads
        twice = self._writer[at] != threads
        if effect:
            twice &= ~np.repeat(effect.agreed, repeat)
        if twice.any():
            self._write_line[at] = line
            self._report(twice, at, threads, line, stride, "writes", "written", self._write_line, self._writer)
        self._write_time[at] = now
        self._write_warp_time[at] = self._clock.warp_time[warps]
        self._write_line[at] = line

    def _granules(self, offsets, threads, size):
        first = offsets // self._granule
        count = max(1, size // self._granule)
        if count == 1:
            return first, threads
        return (first[:, None] + np.arange(count)).reshape(-1), np.repeat(threads, count)

    @staticmethod
    def _note(table, at, values, stale):
        """Set the entries to `values`, or to `_MANY` if another value is noted since the barrier."""
        before = table[at]
        table[at] = np.where(stale | (before == values), values, _MANY)
        several = table[at] != values
        if several.any():
            table[at[several]] = _MANY

    def _check_writes(self, at, threads, warps, now, line, stride, verb, changed=True):
        writer = self._writer[at]
        unordered = (self._write_time[at] == now) & (writer != threads) & (writer != _NOBODY) & changed
        if unordered.any():
            ordered = (writer >> 5 == warps) & (self._write_warp_time[at] < self._clock.warp_time[warps])
            unordered &= ~ordered
            self._report(unordered, at, threads, line, stride, verb, "written", self._write_line, self._writer)

    def _report(self, bad, at, threads, line, stride, verb, done, lines, others):
        if not bad.any():
            return
        first = int(np.flatnonzero(bad)[0])
        place, thread = int(at[first]), int(threads[first])
        in_block = np.count_nonzero(self._clock.block_of == self._clock.block_of[thread])
        other = int(others[place])
        who = "several threads" if other == _MANY else f"thread {other % in_block}"
        raise RaceError(
            f"thread {thread % in_block} {verb} byte {place * self._granule % stride} of {self._name} in line {line}, "
            f"{done} by {who} in line {int(lines[place])}, and no barrier orders them"
        )
