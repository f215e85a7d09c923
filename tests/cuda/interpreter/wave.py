"""Blocks that run at the same time: their threads, registers, barriers and the order in which they run.

Threads run in groups that stand at the same basic block; the group with the lowest one runs next, which joins threads
that diverged. Threads that read what others write (atomics, acquiring loads) let the others run first. Cohorts of warps
run in random order. Races are found by `races`, so that the order need not show them.
"""

from __future__ import annotations

import numpy as np

from tests.cuda.interpreter.copies import Copies
from tests.cuda.interpreter.races import Clock
from tests.cuda.interpreter.spaces import Generic, Global, Local, Shared
from tests.cuda.interpreter.warps import warps_of

_NOWHERE = -1
_BARRIERS = 16


class Wave:
    """Threads of some blocks of a grid."""

    def __init__(self, kernel, memory, blocks, launch, random) -> None:
        self.kernel, self.random, self.launch = kernel, random, launch
        self.block_count = len(blocks)
        per_block = int(np.prod(launch.threads))
        self.thread_count = self.block_count * per_block
        self.clock = Clock(self.block_count, per_block)
        if launch.global_races:
            launch.global_races.begin_wave(self.clock, blocks)
        self._set_positions(np.asarray(blocks), launch, per_block)
        program = kernel.program
        self.parameters = launch.parameters
        self.constants = launch.constants
        self.global_memory = self.const_memory = Global(self, memory, launch.global_races)
        self.shared_memory = Shared(self, program.shared_bytes + launch.shared_bytes, kernel.granule, launch.races)
        self.local_memory = Local(self, program.local_bytes)
        self.generic_memory = Generic(self)
        self.copies = Copies(self)
        self.registers = kernel.poisoned_registers(self.thread_count, random)
        self._threads = np.arange(self.thread_count)
        self._alive_in_warp = np.full(self.thread_count // 32, 32)
        self._alive_in_block = np.full(self.block_count, per_block)
        self._waits_at = np.full(self.thread_count, _NOWHERE)
        self._waits_for = np.full(self.thread_count, _NOWHERE)
        self._arrived = np.zeros((self.block_count, _BARRIERS), np.int64)
        self._expected = np.zeros((self.block_count, _BARRIERS), np.int64)
        self._cohort_of_warp = random.integers(0, launch.cohorts, self.thread_count // 32)
        self._ready: list[dict[tuple[int, int], list[np.ndarray]]] = [{} for _ in range(launch.cohorts)]
        self._parked: dict[int, list[np.ndarray]] = {}
        self._warps = None
        self.n, self.current = self.thread_count, 0

    def _set_positions(self, blocks, launch, per_block) -> None:
        inside, block = np.tile(np.arange(per_block), len(blocks)), np.repeat(blocks, per_block)
        for name, number, sizes in (("tid", inside, launch.threads), ("ctaid", block, launch.grid)):
            for axis, size in zip("xyz", sizes, strict=True):
                setattr(self, f"{name}_{axis}", (number % size).astype(np.uint32))
                setattr(self, f"{'ntid' if name == 'tid' else 'nctaid'}_{axis}", np.uint32(size))
                number = number // size
        self.laneid, self.warpid = (inside & 31).astype(np.uint32), (inside >> 5).astype(np.uint32)
        self.dynamic_smem_size = np.uint32(launch.shared_bytes)

    def threads(self, w):
        """Return the numbers of threads that are selected by a slice or by their numbers."""
        return self._threads[w] if isinstance(w, slice) else w

    def warps(self, w):
        """Return the warps of the running threads."""
        if self._warps is None:
            self._warps = warps_of(self.threads(w))
        return self._warps

    def warp_barrier(self, w, mask) -> None:
        """Order the accesses of the lanes of each warp."""
        warps = self.warps(w)
        warps.check(mask)
        self.clock.warp_time[np.unique(self.threads(w) >> 5)] += 1

    def fence(self, w, mask) -> None:
        """Order the accesses of threads before and after atomic operations."""
        if self.launch.global_races:
            threads = self.threads(w)
            self.launch.global_races.fence(threads if mask is None else threads[np.broadcast_to(mask, threads.shape)])

    def wait_for_previous(self, w, line) -> None:
        """Wait for the kernel before; it has ended."""

    def let_next_start(self, w, line) -> None:
        """Allow the next kernel to start; it starts when this one has ended."""

    def run(self) -> None:
        """Run all threads to their end.

        Raises:
            RuntimeError: Threads wait for each other, or do not end.
        """
        self._add(self._threads, 0, 0)
        steps = 0
        while True:
            cohorts = [index for index, groups in enumerate(self._ready) if groups]
            if not cohorts:
                if self._parked:
                    self._run_parked()
                    continue
                break
            self._next(
                self._ready[cohorts[int(self.random.integers(len(cohorts)))] if len(cohorts) > 1 else cohorts[0]]
            )
            steps += 1
            self.kernel.steps = max(self.kernel.steps, steps)
            if steps > self.kernel.most_steps:
                raise RuntimeError(f"kernel {self.kernel.program.name} does not end")
        waiting = np.flatnonzero(self._waits_at != _NOWHERE)
        if waiting.size:
            block = self.kernel.blocks[self._waits_at[waiting[0]] - 1]
            raise RuntimeError(f"{waiting.size} threads wait at the barrier in line {block.last.line} for ever")

    def _next(self, groups) -> None:
        """Run the first group of a cohort through its basic block."""
        turn, number = min(groups)
        lists = groups.pop((turn, number))
        block = self.kernel.blocks[number]
        if block.whole_warps:
            lists += self._parked.pop(number, [])
        threads = lists[0] if len(lists) == 1 else np.sort(np.concatenate(lists))
        if block.whole_warps and threads.size != self.thread_count:
            warps = threads >> 5
            counts = np.bincount(warps, minlength=self._alive_in_warp.size)
            complete = (counts == self._alive_in_warp)[warps]
            if not complete.all():
                self._parked[number] = [threads[~complete]]
                threads = threads[complete]
        if threads.size:
            self._execute(threads, number, turn)

    def _run_parked(self) -> None:
        """Run threads that wait for the rest of their warp, which cannot come any more."""
        number = min(self._parked)
        threads = np.sort(np.concatenate(self._parked.pop(number)))
        self._execute(threads, number, 0)

    def _execute(self, threads, number, turn) -> None:
        block = self.kernel.blocks[number]
        first, last = int(threads[0]), int(threads[-1])
        w = slice(first, last + 1) if last - first + 1 == threads.size else threads
        self.n, self.current, self._warps = threads.size, number, None
        out = self.kernel.functions[number](self, w, self.registers)
        turn += block.yields
        if block.end == "branch":
            self._branch(threads, out, number, block.target, turn)
        elif block.end == "barrier":
            self._arrive(threads, out, number + 1, block.last.line)
        elif block.end == "exit":
            self._exit(threads, block)
        else:
            self._add(threads, block.target if block.end == "jump" else number + 1, turn)

    def _branch(self, threads, taken, number, target, turn) -> None:
        taken = np.asarray(taken)
        if taken.all():
            self._add(threads, target, turn)
        elif not taken.any():
            self._add(threads, number + 1, turn)
        else:
            self._add(threads[taken], target, turn)
            self._add(threads[~taken], number + 1, turn)

    def _add(self, threads, number, turn) -> None:
        if len(self._ready) == 1:
            self._ready[0].setdefault((turn, number), []).append(threads)
            return
        cohorts = self._cohort_of_warp[threads >> 5]
        for index, groups in enumerate(self._ready):
            chosen = cohorts == index
            if chosen.all():
                groups.setdefault((turn, number), []).append(threads)
                return
            if chosen.any():
                groups.setdefault((turn, number), []).append(threads[chosen])

    def _exit(self, threads, block) -> None:
        if block.last is not None and block.last.name == "trap":
            raise RuntimeError(f"trap in line {block.last.line}")
        self._alive_in_warp -= np.bincount(threads >> 5, minlength=self._alive_in_warp.size)
        blocks = self.clock.block_of[threads]
        self._alive_in_block -= np.bincount(blocks, minlength=self.block_count)
        for barrier in np.flatnonzero(self._arrived.any(0)):
            self._release(int(barrier))

    def _arrive(self, threads, barrier, resume, line) -> None:
        """Let threads wait at a barrier; the blocks whose threads have all come go on."""
        number, count = (int(np.max(value)) if value is not None else None for value in barrier)
        warps = np.bincount(threads >> 5, minlength=self._alive_in_warp.size)
        if ((warps > 0) & (warps != self._alive_in_warp)).any():
            raise RuntimeError(f"a part of a warp reaches the barrier in line {line}")
        blocks = self.clock.block_of[threads]
        self._waits_at[threads], self._waits_for[threads] = resume, number
        self._arrived[:, number] += np.bincount(blocks, minlength=self.block_count)
        self._expected[np.unique(blocks), number] = count or 0
        self._release(number)

    def _release(self, number: int) -> None:
        expected = np.where(self._expected[:, number] > 0, self._expected[:, number], self._alive_in_block)
        arrived = self._arrived[:, number]
        if (arrived > expected).any():
            raise RuntimeError(f"more threads reach barrier {number} than it is for")
        full = (arrived == expected) & (arrived > 0)
        if not full.any():
            return
        self.clock.block_time[full] += 1
        self._arrived[full, number] = 0
        threads = np.flatnonzero((self._waits_for == number) & full[self.clock.block_of])
        places = self._waits_at[threads]
        self._waits_at[threads] = self._waits_for[threads] = _NOWHERE
        for place in np.unique(places):
            self._add(threads[places == place], int(place), 0)
