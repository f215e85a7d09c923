"""The thread team: every item is done once and in its stage, whether members spin, park, back off or sit out."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from benchmarks.busy_core import busy_loop
from qwchat.cpu.kernels.scheduler import (
    BACK_OFF,
    announce_end,
    await_step,
    barrier,
    begin_step,
    claim,
    end_step,
    is_contended,
    next_back_off,
    wake,
)
from qwchat.cpu.kernels.sync import atomic_add, atomic_load, atomic_store, pause
from qwchat.cpu.kernels.thread_team import CANCEL_WORD, HEADER_LINES, MEMBER_BYTES, RUN, EntryPoints, ThreadTeam
from tests.clocks import cpu_share, wait_for
from tests.cpu.kernels.numba_cached import kernel
from tests.tiers import count

LINE = 64


@kernel
def _step(team, member, items, pauses, counts, seen):  # type: ignore[no-untyped-def]
    """Run one step.

    `counts`: items done in each stage. `seen`: items that came before their stage, then the items of each member.
    """
    done, own = counts.ctypes.data, seen.ctypes.data
    for stage in range(len(items)):
        while True:
            item = claim(team, member, items[stage])
            if item < 0:
                break
            late = stage > 0 and atomic_load(done + (stage - 1) * LINE) != items[stage - 1]
            if late or item >= items[stage]:
                atomic_add(own, 1)
            for _ in range(pauses[0]):
                pause()
            atomic_add(done + stage * LINE, 1)
            atomic_add(own + (member + 1) * LINE, 1)
        barrier(team, member)


@kernel
def _lead(team, size, items, pauses, counts, seen):  # type: ignore[no-untyped-def]
    begin_step(team)
    _step(team, 0, items, pauses, counts, seen)
    end_step(team)


@kernel
def _serve(team, member, size, items, pauses, counts, seen):  # type: ignore[no-untyped-def]
    while True:
        outcome = await_step(team, member)
        if outcome != RUN:
            return outcome
        _step(team, member, items, pauses, counts, seen)


ENTRY_POINTS = EntryPoints(_lead, _serve, wake, announce_end)


@kernel
def _cancelled_step(team, member, items, stop_after, counts):  # type: ignore[no-untyped-def]
    """Set the cancel word in item `stop_after`; count the items done, and those begun after that, in `counts`."""
    done, late = counts.ctypes.data, counts.ctypes.data + LINE
    for stage in range(len(items)):
        while True:
            item = claim(team, member, items[stage])
            if item < 0:
                break
            atomic_add(late, 1 if atomic_load(team + CANCEL_WORD) != 0 else 0)
            for _ in range(100):
                pause()
            if atomic_add(done, 1) == stop_after[0]:
                atomic_store(team + CANCEL_WORD, 1)
        barrier(team, member)


@kernel
def _lead_cancelled(team, size, items, stop_after, counts):  # type: ignore[no-untyped-def]
    begin_step(team)
    _cancelled_step(team, 0, items, stop_after, counts)
    end_step(team)


@kernel
def _serve_cancelled(team, member, size, items, stop_after, counts):  # type: ignore[no-untyped-def]
    while True:
        outcome = await_step(team, member)
        if outcome != RUN:
            return outcome
        _cancelled_step(team, member, items, stop_after, counts)


class Work:
    """A team, and counts of what its members did."""

    def __init__(self, size: int, stages: int) -> None:
        self.items = np.ones(stages, np.int64)
        self.pauses = np.zeros(1, np.int64)
        self.counts = np.zeros((stages, 8), np.int64)
        self.seen = np.zeros((size + 1, 8), np.int64)
        self.team = ThreadTeam(size, ENTRY_POINTS, (self.items, self.pauses, self.counts, self.seen))

    def check_step(self, active: int | None = None) -> None:
        self.counts[:] = 0
        self.team.run(active)
        assert np.array_equal(self.counts[:, 0], self.items)
        assert self.seen[0, 0] == 0

    def back_off(self, member: int) -> int:
        """Return the length of the member's last back-off, in ns."""
        offset = self.team.address - self.team._memory.ctypes.data
        offset += HEADER_LINES * LINE + member * MEMBER_BYTES + BACK_OFF
        return int(self.team._memory[offset : offset + 8].view(np.int64)[0])

    def step_until_all_have_worked(self) -> None:
        """Run steps until every member has worked.

        A member that is never woken never works; on a busy machine one may wake too late for many steps.
        """
        wait_for(lambda: self.check_step() or (self.seen[1:, 0] > 0).all(), "work of every member", pause=0)

    def parked(self) -> int:
        """Return how many members are parked, and set the flags of those to wake."""
        return int(wake(self.team.address, self.team.size, self.team._parked_flags.ctypes.data))

    def close(self) -> None:
        self.team.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("qwchat-")]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.slow
def test_every_item_is_done_once_and_in_its_stage(size: int) -> None:
    rng = np.random.default_rng(size)
    work = Work(size, 40)
    pauses_between = [0.0] * count(1500, 200) + [0.01] * 4 + [0.0] * count(100, 50)  # some steps meet parked members
    for seconds in pauses_between:
        time.sleep(seconds)
        work.items[:] = np.where(rng.random(40) < 0.5, 1, rng.integers(1, 60, 40))
        work.check_step()
    work.close()


def test_every_member_gets_work() -> None:
    work = Work(3, 2)
    work.items[:] = 2_000_000
    work.step_until_all_have_worked()
    work.close()


def test_members_beyond_the_active_ones_sit_out() -> None:
    work = Work(4, 30)
    work.items[:] = 200
    for step in range(400):
        before = work.seen[1:, 0].copy()
        active = 1 + step % 4
        time.sleep(0.001 * (step % 3 == 0))
        work.check_step(active)
        assert np.array_equal(work.seen[1 + active :, 0], before[active:])
    work.close()


@pytest.mark.slow
def test_idle_members_cost_nothing() -> None:
    work = Work(2, 3)
    work.team.run()
    wait_for(lambda: work.parked() == 1, "the member to park")
    assert cpu_share(lambda: time.sleep(1.0)) < 0.2
    work.close()


@pytest.mark.slow
def test_members_do_not_spin_for_a_slow_consumer() -> None:
    work = Work(2, 3)
    for _ in range(2):
        work.check_step()

    def consume() -> None:
        for _ in range(30):
            time.sleep(1 / 30)
            work.check_step()

    assert cpu_share(consume) < 0.3
    work.close()


def test_an_interrupt_before_a_step_leaves_no_member_parked() -> None:
    work = Work(3, 2)
    work.items[:] = 100_000
    work.check_step()
    for _ in range(5):
        wait_for(lambda: work.parked() == 2, "both members to park")
        work.check_step()  # all were parked and flagged to be woken, but were not woken
    work.step_until_all_have_worked()
    work.team._wake_members(3)  # woken without a step
    wait_for(lambda: work.parked() == 2, "both members to park again")
    work.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a thread of its preemptions")
def test_a_member_backs_off_on_a_contended_core() -> None:
    work = Work(2, 20)
    work.items[:] = 20
    work.pauses[0] = 1000  # some tens of microseconds
    for _ in range(5):
        work.check_step()
    with ExitStack() as loops:
        for core in os.sched_getaffinity(0):
            loops.enter_context(busy_loop(core, own_session=False))
        wait_for(lambda: work.check_step() or work.back_off(1), "a back-off", pause=0)
    done = work.seen[2, 0]
    wait_for(lambda: work.check_step() or work.seen[2, 0] > done, "the end of the back-off", pause=0)
    work.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_cancelled_step_ends_with_the_items_in_progress(size: int) -> None:
    rng = np.random.default_rng(size)
    items, stop_after, counts = rng.integers(1, 40, 60), np.zeros(1, np.int64), np.zeros((2, 8), np.int64)
    entry_points = EntryPoints(_lead_cancelled, _serve_cancelled, wake, announce_end)
    team = ThreadTeam(size, entry_points, (items, stop_after, counts))
    for stop in rng.integers(0, items.sum(), 200):
        counts[:], stop_after[0] = 0, stop
        assert not team.run_cancellable(lambda: False)
        done, late = counts[:, 0]
        assert done > stop
        assert late < size
        counts[:], stop_after[0] = 0, -1  # The next step is complete, however it is run.
        if stop % 2:
            team.run()
        else:
            assert team.run_cancellable(lambda: False)
        assert counts[:, 0].tolist() == [items.sum(), 0]
    team.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("qwchat-")]


@pytest.mark.parametrize("raising", [False, True])
def test_a_step_is_cancelled_before_the_first_item(raising: bool) -> None:
    work = Work(2, 5)

    def cancelled() -> bool:
        if raising:
            raise KeyboardInterrupt
        return True

    work.pauses[0], work.items[:] = 1000, 2000  # Uncancelled, the step would take seconds.
    if raising:
        with pytest.raises(KeyboardInterrupt):
            work.team.run_cancellable(cancelled)
    else:
        assert not work.team.run_cancellable(cancelled)
    assert work.counts.sum() < work.items.sum()
    work.pauses[0], work.items[:] = 0, 10
    work.check_step()
    work.close()


def test_back_offs_grow_while_the_core_is_contended() -> None:
    millisecond = 1_000_000
    lengths = [0]
    for _ in range(5):
        lengths.append(_next_back_off(lengths[-1], 8 * millisecond))
    assert lengths[1:] == [20 * millisecond, 40 * millisecond, 80 * millisecond, 160 * millisecond, 160 * millisecond]
    assert _next_back_off(160 * millisecond, 161 * millisecond) == 20 * millisecond


def test_a_member_backs_off_when_it_costs_more_than_it_contributes() -> None:
    millisecond = 1_000_000
    assert _is_contended(15 * millisecond, 7 * millisecond, 2)
    assert not _is_contended(15 * millisecond, 4 * millisecond, 2)
    assert _is_contended(15 * millisecond, 4 * millisecond, 4)
    assert not _is_contended(15 * millisecond, millisecond, 64)  # too short to count


@kernel
def _is_contended(elapsed, stolen, active):  # type: ignore[no-untyped-def]
    return is_contended(elapsed, stolen, active)


@kernel
def _next_back_off(last, since_last):  # type: ignore[no-untyped-def]
    return next_back_off(last, since_last)
