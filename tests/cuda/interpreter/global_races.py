"""Races in global memory: between threads of a block, and between blocks of a launch.

Blocks are ordered by a release and an acquire of one word: an atomic operation or an acquiring load, by itself or with
a fence. A release covers what its block did before its last `bar.sync`, and what its own warp did; an acquire counts
for its own warp at once and for its block after the next `bar.sync`. What `.nc` loads must not be written at all.

Most loads and stores of a kernel are far apart. So reads are only kept in a log, with a map of pages, until a store
comes near.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.cuda.interpreter.memory import Effect
from tests.cuda.interpreter.races import RaceError

_PAGE, _WORD = 8, 2  # Bits of an offset inside a page and inside a word.
_NOBODY, _MANY = -1, -2


@dataclass
class _Accesses:
    """Accesses of some threads: byte offsets, threads of the launch, barriers and warp barriers passed before."""

    offsets: np.ndarray
    threads: np.ndarray
    times: np.ndarray
    warp_times: np.ndarray
    line: int
    size: int

    def words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return word, thread, time and warp time of each word that is accessed."""
        first, count = self.offsets >> _WORD, max(1, self.size >> _WORD)
        if count == 1:
            return first, self.threads, self.times, self.warp_times
        spread = (first[:, None] + np.arange(count)).reshape(-1)
        return spread, *(np.repeat(each, count) for each in (self.threads, self.times, self.warp_times))

    def some(self, chosen: np.ndarray) -> _Accesses:
        """Return a part of the accesses."""
        parts = (each[chosen] for each in (self.offsets, self.threads, self.times, self.warp_times))
        return _Accesses(*parts, self.line, self.size)


class _Last:
    """The last thread that accessed each word, and when."""

    def __init__(self, words: int) -> None:
        self.thread = np.full(words, _NOBODY, np.int64)
        self.time, self.warp_time, self.line = (np.zeros(words, np.int32) for _ in range(3))
        self.small = np.zeros(words, bool)

    def note(self, accesses: _Accesses, *, several: bool) -> None:
        """Note accesses; with `several`, words that more than one thread accessed say so."""
        words, threads, times, warp_times = accesses.words()
        if several:
            before = self.thread[words]
            self.thread[words] = np.where((before == _NOBODY) | (before == threads), threads, _MANY)
            shared = self.thread[words] != threads
            self.thread[words[shared]] = _MANY
        else:
            self.thread[words] = threads
        self.time[words], self.warp_time[words], self.line[words] = times, warp_times, accesses.line
        self.small[words] = accesses.size < 4


@dataclass
class _Array:
    """What happened to an array of global memory during a launch."""

    words: int
    read_pages: np.ndarray
    constant_pages: np.ndarray
    written_pages: np.ndarray
    log: list[_Accesses] = field(default_factory=list)
    readers: _Last | None = None
    writers: _Last | None = None


class GlobalRaces:
    """Accesses of a launch to global memory.

    Args:
        blocks: Blocks of the grid.
        threads: Threads of a block.
    """

    def __init__(self, blocks: int, threads: int) -> None:
        self._blocks, self._threads = blocks, threads
        self._arrays: dict[int, _Array] = {}
        self._seen: np.ndarray | None = None
        self._releases: dict[int, np.ndarray] = {}
        self._fences: dict[int, int] = {}
        self._unfenced: dict[int, list[int]] = {}
        self._acquired: list[tuple[int, int, int, np.ndarray]] = []

    def begin_wave(self, clock, blocks) -> None:
        """Take the clock of the blocks that run now."""
        self._clock, self._numbers = clock, np.asarray(blocks)

    def accesses(self, offsets, threads, size, line) -> _Accesses:
        """Return accesses of threads of the wave."""
        block = self._clock.block_of[threads]
        numbers = self._numbers[block] * self._threads + threads % self._threads
        return _Accesses(
            offsets, numbers, self._clock.block_time[block], self._clock.warp_time[threads >> 5], line, size
        )

    def _array(self, index: int, size: int) -> _Array:
        if index not in self._arrays:
            pages = (size >> _PAGE) + 1
            self._arrays[index] = _Array((size >> _WORD) + 1, *(np.zeros(pages, bool) for _ in range(3)))
        return self._arrays[index]

    def read(self, index: int, array_size: int, offsets, threads, size: int, line: int, constant: bool) -> None:
        """Check and note loads; `constant`: by `.nc`.

        Raises:
            RaceError: The launch wrote there, and nothing orders the accesses.
        """
        array, pages = self._array(index, array_size), offsets >> _PAGE
        near = array.written_pages[pages] if array.writers else None
        if near is not None and near.any():
            some = self.accesses(offsets, threads, size, line).some(near)
            self._check(some, array.writers, "reads", "written", anyway=constant)
        if constant:
            array.constant_pages[pages] = True
            return
        entry = self.accesses(offsets, threads, size, line)
        if array.readers:
            array.readers.note(entry, several=True)
        else:
            array.read_pages[pages] = True
            array.log.append(entry)

    def write(self, index: int, array_size: int, offsets, threads, size: int, line: int, effect: Effect) -> None:
        """Check and note stores. Storing what is there already, or what others store too, is harmless.

        Raises:
            RaceError: Another thread accessed the place, and nothing orders the accesses.
        """
        array, pages = self._array(index, array_size), offsets >> _PAGE
        if array.constant_pages[pages].any():
            place = int(offsets[array.constant_pages[pages]][0])
            raise RaceError(f"line {line} stores to byte {place} of array {index}, near what the kernel loads by .nc")
        entry = self.accesses(offsets, threads, size, line)
        if array.writers is None:
            array.writers = _Last(array.words)
        if array.readers is None and array.read_pages[pages].any():
            array.readers = _Last(array.words)
            for before in array.log:
                array.readers.note(before, several=True)
            array.log.clear()
        if not effect.unchanged.all():
            changing = entry.some(~effect.unchanged)
            if array.readers:
                self._check(changing, array.readers, "writes", "read")
            self._check(changing, array.writers, "writes", "written", small=size < 4)
        array.writers.note(entry, several=False)
        array.written_pages[pages] = True
        if size < 4 or effect.agreed.all():
            return
        words, numbers, *_ = entry.some(~effect.agreed).words()
        twice = array.writers.thread[words] != numbers
        if twice.any():
            self._raise(entry, words[twice][0], numbers[twice][0], array.writers, "writes", "written")

    def _check(self, entry: _Accesses, last: _Last, verb: str, done: str, *, anyway=False, small=False) -> None:
        """Raise RaceError unless the last accesses come before those of `entry`."""
        words, threads, times, warp_times = entry.words()
        other = last.thread[words]
        bad = (other != _NOBODY) & (other != threads)
        if small:  # Bytes of a word may belong to different threads.
            bad &= ~last.small[words]
        if bad.any() and not anyway:
            bad[bad] = ~self._ordered(last, words[bad], threads[bad], times[bad], warp_times[bad])
        if bad.any():
            self._raise(entry, words[bad][0], threads[bad][0], last, verb, done)

    def _ordered(self, last: _Last, words, threads, times, warp_times):
        """Return whether the last access of each word comes before a new one."""
        other, time = last.thread[words], last.time[words]
        here, there = threads // self._threads, other // self._threads
        many = other == _MANY
        inside = (here == there) & ~many
        ordered = inside & ((time < times) | ((threads >> 5 == other >> 5) & (last.warp_time[words] < warp_times)))
        outside = ~inside
        if outside.any() and (self._seen is not None or self._acquired):
            ordered[outside] = self._known(here[outside], other[outside], time[outside], threads[outside])
        return ordered

    def _known(self, here, other, time, threads):
        """Return whether blocks have acquired what other threads released.

        If several threads of other blocks are meant, that the block has acquired anything must do.
        """
        self._apply_acquires()
        blocks, warps = np.maximum(other, 0) // self._threads, other >> 5
        known = np.zeros(here.size, bool)
        if self._seen is not None:
            known |= _covers(self._seen[here, blocks], time, warps)
        for thread, _, _, releases in self._acquired:  # Not yet known to the whole block.
            known |= (threads >> 5 == thread >> 5) & _covers(releases[blocks], time, warps)
        acquired = {thread // self._threads for thread, *_ in self._acquired}
        if self._seen is not None:
            acquired |= {int(block) for block in np.flatnonzero(self._seen[:, :, 0].any(1))}
        return np.where(other == _MANY, np.isin(here, list(acquired)), known)

    def fence(self, threads) -> None:
        """Note a fence of threads: relaxed atomics after it release, those before it acquire."""
        entry = self.accesses(threads, threads, 4, 0)
        for thread, time in zip(entry.threads.tolist(), entry.times.tolist(), strict=True):
            self._fences[thread] = time
            for address in self._unfenced.pop(thread, []):
                self._acquire(address, thread, time)

    def synchronise(self, address: int, thread, flags, *, reads: bool, writes: bool) -> None:
        """Note an atomic operation, a releasing store or an acquiring load of one thread."""
        entry = self.accesses(thread, thread, 4, 0)
        number, time = int(entry.threads[0]), int(entry.times[0])
        if writes and ({"release", "acq_rel"} & {*flags} or number in self._fences):
            released = self._releases.setdefault(address, np.zeros((self._blocks, 2), np.int64))
            block = number // self._threads
            np.maximum(released, self._all_seen(number), out=released)
            covered = time if {"release", "acq_rel"} & {*flags} else self._fences[number]
            released[block] = max(int(released[block, 0]), covered), number >> 5
        if reads and {"acquire", "acq_rel"} & {*flags}:
            self._acquire(address, number, time)
        elif reads:
            self._unfenced.setdefault(number, []).append(address)

    def _all_seen(self, thread: int):
        """Return what a thread has acquired, which its own release passes on."""
        self._apply_acquires()
        total = np.zeros((self._blocks, 2), np.int64)
        if self._seen is not None:
            total = np.maximum(total, self._seen[thread // self._threads])
        for other, _, _, releases in self._acquired:
            if other >> 5 == thread >> 5:
                total = np.maximum(total, releases)
        return total

    def _acquire(self, address: int, thread: int, time: int) -> None:
        if address in self._releases:
            slot = int(np.flatnonzero(self._numbers == thread // self._threads)[0])
            self._acquired.append((thread, time, slot, self._releases[address].copy()))

    def _apply_acquires(self) -> None:
        """Make acquires known to the whole block where it has passed a barrier since."""
        waiting = []
        for thread, time, slot, releases in self._acquired:
            block = thread // self._threads
            running = slot < self._numbers.size and self._numbers[slot] == block
            if running and self._clock.block_time[slot] == time:
                waiting.append((thread, time, slot, releases))
            else:
                if self._seen is None:
                    self._seen = np.zeros((self._blocks, self._blocks, 2), np.int64)
                newer = releases[:, 0] >= self._seen[block][:, 0]
                self._seen[block][newer] = releases[newer]
        self._acquired = waiting

    def _raise(self, entry: _Accesses, word, thread, last: _Last, verb: str, done: str) -> None:
        other = int(last.thread[word])
        who = "several threads" if other == _MANY else self._named(other)
        raise RaceError(
            f"{self._named(int(thread))} {verb} byte {int(word) << _WORD} of a global array in line {entry.line}, "
            f"{done} by {who} in line {int(last.line[word])}, and nothing orders them"
        )

    def _named(self, thread: int) -> str:
        return f"thread {thread % self._threads} of block {thread // self._threads}"


def _covers(released, time, warps):
    """Return whether releases (time, warp) cover accesses at `time` by threads of `warps`."""
    return (time < released[:, 0]) | ((time == released[:, 0]) & (warps == released[:, 1]))
