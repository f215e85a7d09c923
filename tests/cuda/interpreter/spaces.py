"""Global, shared and local memory as instructions see them: bounds, alignment and races are checked."""

from __future__ import annotations

import numpy as np

from tests.cuda.interpreter.atomics import apply_atomic
from tests.cuda.interpreter.global_races import GlobalRaces
from tests.cuda.interpreter.memory import POISON, Effect, Memory, equal
from tests.cuda.interpreter.races import Races

SHARED_WINDOW = np.uint64(0x0100_0000_0000_0000)
LOCAL_WINDOW = np.uint64(0x0200_0000_0000_0000)
"""Where shared and local memory begin in generic addresses."""


def pack(values, dtype, size, count):
    """Return what `count` threads store: unsigned integers of `size` bytes, or rows of four u32 for 16."""
    if len(values) == 1:
        value = values[0]
        rows = np.ascontiguousarray(value if np.shape(value) == (count,) else np.broadcast_to(value, count))
    else:
        rows = np.empty((count, len(values)), dtype)
        for index, value in enumerate(values):
            rows[:, index] = value
    return rows.view(np.uint32).reshape(-1, 4) if size == 16 else rows.view(f"u{size}").reshape(-1)


def columns(loaded, dtype, count):
    """Return the elements of a vector load, one contiguous array each."""
    return np.ascontiguousarray(np.ascontiguousarray(loaded).view(dtype).reshape(-1, count).T)


def _each(value, threads):
    """Return one value per thread."""
    return value if np.shape(value) == threads.shape else np.broadcast_to(value, threads.shape)


class Space:
    """A memory; subclasses say where its bytes are."""

    def __init__(self, wave) -> None:
        self.wave = wave

    def load(self, addresses, w, size, mask, line, flags):
        """Return `size` bytes per thread; 0 where `mask` is false."""
        threads = self.wave.threads(w)
        addresses = _each(addresses, threads)
        if mask is None:
            return self.read(addresses, threads, size, line, flags)
        mask = _each(mask, threads)
        out = np.zeros((threads.size, 4) if size == 16 else threads.size, np.uint32 if size == 16 else f"u{size}")
        if mask.any():
            out[mask] = self.read(addresses[mask], threads[mask], size, line, flags)
        return out

    def store(self, addresses, w, values, size, mask, line):
        """Store `size` bytes per thread where `mask` is true; among equal addresses a random thread is last."""
        threads = self.wave.threads(w)
        addresses = _each(addresses, threads)
        if mask is not None:
            mask = _each(mask, threads)
            addresses, values, threads = addresses[mask], values[mask], threads[mask]
        if threads.size:
            self.write(addresses, threads, values, size, line)

    def atomic(self, operation, addresses, w, values, dtype, mask, line, flags):
        """Return the values before an atomic operation; the threads take turns in random order."""
        threads = self.wave.threads(w)
        addresses = _each(addresses, threads)
        values = [_each(value, threads) for value in values]
        chosen = np.arange(threads.size) if mask is None else np.flatnonzero(_each(mask, threads))
        old = np.zeros(threads.size, dtype)
        for index in self.wave.random.permutation(chosen):
            one = slice(index, index + 1)
            self.order(addresses[one], threads[one], flags)
            before = self.read_raw(addresses[one], threads[one], dtype.itemsize).view(dtype)
            after = apply_atomic(operation, before[0], [value[index] for value in values])
            self.write_raw(
                addresses[one], threads[one], np.array([after], dtype).view(f"u{dtype.itemsize}"), dtype.itemsize
            )
            old[index] = before[0]
        return old

    def order(self, addresses, threads, flags):
        """Note that an atomic operation orders accesses of its block with those of others."""


class Global(Space):
    """Global memory."""

    def __init__(self, wave, memory: Memory, races: GlobalRaces | None) -> None:
        super().__init__(wave)
        self.memory, self.races = memory, races
        self.read_raw = lambda addresses, threads, size: memory.load(_wide(addresses), size)
        self.write_raw = lambda addresses, threads, values, size: memory.store(_wide(addresses), values, size)

    def read(self, addresses, threads, size, line, flags):
        """Return what threads load."""
        ordered = bool({"acquire", "relaxed", "volatile"} & {*flags})
        if self.races is None or ordered:
            if self.races and ordered:
                for address, thread in zip(_wide(addresses).tolist(), threads, strict=True):
                    self.races.synchronise(address, thread[None], flags, reads=True, writes=False)
            return self.memory.load(_wide(addresses), size)

        def watch(here, index, array_size, offsets):
            some = threads if here is None else threads[here]
            self.races.read(index, array_size, offsets, some, size, line, "nc" in flags)

        return self.memory.load(_wide(addresses), size, watch)

    def write(self, addresses, threads, values, size, line):
        """Store what threads store."""

        def watch(here, index, array_size, offsets, effect):
            some = threads if here is None else threads[here]
            self.races.write(index, array_size, offsets, some, size, line, effect)

        self.memory.store(_wide(addresses), values, size, watch if self.races else None)

    def order(self, addresses, threads, flags):
        """Note that an atomic operation orders accesses of its block with those of others."""
        if self.races:
            self.races.synchronise(int(_wide(addresses)[0]), threads, flags, reads=True, writes=True)


def _wide(addresses):
    return np.asarray(addresses).astype(np.uint64)


class PerOwner(Space):
    """Memory of which each block or each thread has its own part.

    Attributes:
        size: Bytes of one owner.
    """

    def __init__(self, wave, owners: int, size: int, name: str) -> None:
        super().__init__(wave)
        self.size, self.name = size, name
        self._stride = -(-size // 16) * 16
        self._bytes = np.full(owners * self._stride, POISON, np.uint8)
        self._views = {1: self._bytes, 16: self._bytes.view(np.uint32).reshape(-1, 4)}
        self._views.update({width: self._bytes.view(f"u{width}") for width in (2, 4, 8)})

    def owners(self, threads):
        """Return whose memory each thread uses."""
        raise NotImplementedError

    def places(self, addresses, threads, size):
        """Return the offset of each access in units of `size`.

        Raises:
            IndexError: Outside of the owner's memory, or not aligned.
        """
        at = np.asarray(addresses).astype(np.int64)
        low, high = int(at.min()), int(at.max())
        if low < 0 or high + size > self.size:
            beyond = low if low < 0 else high
            raise IndexError(f"{size} bytes at byte {beyond} of {self.size} bytes of {self.name} memory")
        if size > 1 and (at & (size - 1)).any():
            raise IndexError(f"an access of {size} bytes to {self.name} memory is not aligned")
        return (self.owners(threads) * self._stride + at) // size

    def read_raw(self, addresses, threads, size):
        """Return bytes without a check for races."""
        return self._views[size][self.places(addresses, threads, size)]

    def write_raw(self, addresses, threads, values, size):
        """Store bytes without a check for races."""
        self._views[size][self.places(addresses, threads, size)] = values

    def read(self, addresses, threads, size, line, flags):
        """Return what threads load."""
        return self.read_raw(addresses, threads, size)

    def write(self, addresses, threads, values, size, line):
        """Store what threads store."""
        self.write_raw(addresses, threads, values, size)


class Shared(PerOwner):
    """Shared memory of the blocks of a wave."""

    def __init__(self, wave, size: int, granule: int, races: bool) -> None:
        super().__init__(wave, wave.block_count, size, "shared")
        self.races = Races(wave.clock, self._bytes.size, granule, "shared memory") if races and size else None

    def owners(self, threads):
        """Return the number of each thread's block in the wave."""
        return self.wave.clock.block_of[threads]

    def read(self, addresses, threads, size, line, flags):
        """Return what threads load."""
        places = self.places(addresses, threads, size)
        if self.races:
            self.races.read(places * size, threads, size, line, self._stride)
        return self._views[size][places]

    def write(self, addresses, threads, values, size, line):
        """Store what threads store."""
        places, view = self.places(addresses, threads, size), self._views[size]
        before = view[places] if self.races else None
        view[places] = values
        if self.races:
            effect = Effect(equal(before, values), equal(view[places], values))
            self.races.write(places * size, threads, size, line, self._stride, effect)

    def announce(self, addresses, threads, size, line):
        """Check a store whose bytes arrive later."""
        places = self.places(addresses, threads, size)
        if self.races:
            self.races.write(places * size, threads, size, line, self._stride)


class Local(PerOwner):
    """Local memory of the threads of a wave."""

    def __init__(self, wave, size: int) -> None:
        super().__init__(wave, wave.thread_count, size, "local")

    def owners(self, threads):
        """Return the threads."""
        return threads


class Generic(Space):
    """Addresses that say themselves which memory is meant."""

    def _parts(self, addresses):
        addresses = _wide(addresses)
        window = addresses >> np.uint64(56)
        for number, space in ((0, self.wave.global_memory), (1, self.wave.shared_memory), (2, self.wave.local_memory)):
            here = window == number
            if here.any():
                yield here, addresses[here] & np.uint64(2**56 - 1), space

    def read(self, addresses, threads, size, line, flags):
        """Return what threads load."""
        out = np.zeros((threads.size, 4) if size == 16 else threads.size, np.uint32 if size == 16 else f"u{size}")
        for here, inside, space in self._parts(addresses):
            out[here] = space.read(inside, threads[here], size, line, flags)
        return out

    def write(self, addresses, threads, values, size, line):
        """Store what threads store."""
        for here, inside, space in self._parts(addresses):
            space.write(inside, threads[here], values[here], size, line)

    def read_raw(self, addresses, threads, size):
        """Return bytes without a check for races."""
        out = np.zeros(threads.size, f"u{size}")
        for here, inside, space in self._parts(addresses):
            out[here] = space.read_raw(inside, threads[here], size)
        return out

    def write_raw(self, addresses, threads, values, size):
        """Store bytes without a check for races."""
        for here, inside, space in self._parts(addresses):
            space.write_raw(inside, threads[here], values[here], size)
