"""The thread team: every step is run by all members, whether they spin, yield or sleep when it comes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from qwchat.kernels.jit import kernel
from qwchat.kernels.sync import atomic_add
from qwchat.kernels.team import announce_end, await_step, barrier, begin_step, relax, rouse, take
from qwchat.kernels.threads import RUN, Program, Team

ITEMS = 1000


@kernel
def _step(team, member, size, seen):  # type: ignore[no-untyped-def]
    for _ in range(3):
        while take(team, 7) < ITEMS:
            atomic_add(seen.ctypes.data, 7)
        barrier(team, size)
    atomic_add(seen.ctypes.data + 64 * (member + 1), 1)
    barrier(team, size)


@kernel
def _lead(team, size, seen):  # type: ignore[no-untyped-def]
    begin_step(team)
    _step(team, 0, size, seen)


@kernel
def _serve(team, member, size, seen):  # type: ignore[no-untyped-def]
    while True:
        outcome = await_step(team, member)
        if outcome != RUN:
            return outcome
        _step(team, member, size, seen)


PROGRAM = Program(_lead, _serve, rouse, relax, announce_end)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_member_takes_part_in_every_step(size: int) -> None:
    seen = np.zeros((size + 1) * 8, np.int64)
    team = Team(size, PROGRAM, (seen,))
    pauses = [0.0] * 200 + [0.05] * 4 + [0.0] * 50  # some steps meet members that sleep
    for pause in pauses:
        time.sleep(pause)
        team.run()
    rounds = -(-ITEMS // 7) * 7
    assert seen[0] == 3 * rounds * len(pauses)
    assert (seen[8::8] == len(pauses)).all()
    team.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("qwchat-")]


def test_idle_members_cost_nothing() -> None:
    team = Team(2, PROGRAM, (np.zeros(24, np.int64),))
    team.run()
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05
    team.close()
