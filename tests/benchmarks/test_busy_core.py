"""The benchmark with busy loops: measurements count as disturbed by other processes, not by its own loops."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import pytest

from benchmarks import busy_core
from tests.clocks import wait_for


@pytest.mark.parametrize(("taken", "attempts"), [([0.0], 1), ([5.0, 0.0], 2), ([5.0, 3.0, 4.0, 6.0], 4)])
def test_a_disturbed_measurement_is_repeated(
    monkeypatch: pytest.MonkeyPatch, taken: list[float], attempts: int
) -> None:
    readings = iter([value for seconds in taken for value in (0.0, seconds)])
    calls: list[int] = []

    def speeds(engine: Any, prompt: int, new: int) -> tuple[float, float]:
        calls.append(prompt)
        return float(len(calls)), 0.0

    clock = itertools.count()
    monkeypatch.setattr(busy_core.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(busy_core, "_SETTLE", 0)
    monkeypatch.setattr(busy_core, "_used", lambda loops: next(readings))
    monkeypatch.setattr(busy_core, "speeds", speeds)
    share, pair = busy_core.undisturbed(None, [], 512, 24)  # type: ignore[arg-type]
    assert len(calls) == attempts
    assert pair == (1.0 + taken.index(min(taken)), 0.0)
    assert (share < 0.1) == (min(taken) == 0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="pins processes to cores")
def test_a_loop_keeps_its_core_busy_and_ends() -> None:
    with busy_core.busy_loop(min(os.sched_getaffinity(0)), own_session=True) as loop:

        def used() -> float:
            return busy_core._used([]) - busy_core._used([loop])

        before = used()
        wait_for(lambda: used() - before > 0.3, "processor time of the loop")
    assert loop.poll() is not None
