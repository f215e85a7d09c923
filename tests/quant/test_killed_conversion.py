"""kill -9 at random points: the rest never opens, and resuming gives the bytes of an uninterrupted conversion."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from quant.container import open_model
from quant.errors import ContainerError
from quant.verification import verify
from tests.quant.converting import content, run
from tests.quant.deadly_calls import FORK, die_at_call
from tests.tiers import count


def check_half_written(parent: Path, expected: dict[str, bytes]) -> None:
    """Check that nothing in `parent` opens as a model except the finished one."""
    for folder in parent.iterdir():
        if not folder.is_dir():
            continue
        try:
            model = open_model(folder)
        except ContainerError:
            continue
        assert verify(model) == {}
        assert {name: data for name, data in content(folder).items() if name in expected} == expected


@pytest.mark.parametrize("seed", range(count(50, 4)))
def test_killed_at_a_random_system_call(source: Path, tmp_path: Path, expected: dict[str, bytes], seed: int) -> None:
    chance = random.Random(seed)
    destination = tmp_path / "model"
    for attempt in range(3):
        child = FORK.Process(
            target=die_at_call,
            args=(chance.randint(1, 130), partial(run, source, destination, resume=attempt > 0)),
        )
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        check_half_written(tmp_path, expected)
    run(source, destination, resume=True)
    assert content(destination) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_killed_at_every_one_of_the_last_calls(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Kill during the last tensors, the manifest, syncs and renames, while an older model is replaced."""
    finished = False
    for number in range(95, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(source, folder / "model", preset="q8")
        old = content(folder / "model")
        child = FORK.Process(target=die_at_call, args=(number, partial(run, source, folder / "model", force=True)))
        child.start()
        child.join()
        if (folder / "model").exists():
            assert content(folder / "model") in (old, expected)
        check_half_written_or_old(folder, old, expected)
        run(source, folder / "model", resume=True, force=True)
        assert content(folder / "model") == expected
        assert [path.name for path in folder.iterdir()] == ["model"]
        if child.exitcode == 0:
            finished = True
            break
    assert finished


def check_half_written_or_old(parent: Path, old: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Check that a complete model exists at every moment: the old one or the new one."""
    complete = [content(folder) for folder in parent.iterdir() if folder.is_dir()]
    assert old in complete or expected in complete


def test_killed_after_a_random_time(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    began = time.monotonic()
    run(source, tmp_path / "whole")
    longest = 1.5 * (time.monotonic() - began)
    chance = random.Random(7)
    killed = number = 0
    while killed < count(15, 3):
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        child = FORK.Process(target=run, args=(source, folder / "model"))
        child.start()
        time.sleep(chance.uniform(0, longest))
        child.kill()
        child.join()
        if child.exitcode == -signal.SIGKILL:
            killed += 1
        else:
            longest *= 0.8  # The machine was slower during the measurement.
        check_half_written(folder, expected)
        run(source, folder / "model", resume=True)
        assert content(folder / "model") == expected
        assert [path.name for path in folder.iterdir()] == ["model"]
