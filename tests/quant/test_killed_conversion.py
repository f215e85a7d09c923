"""kill -9 at random points: the rest never opens, and resuming gives the bytes of an uninterrupted conversion."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quant.container import open_model
from quant.errors import ContainerError
from quant.verification import verify
from tests.quant.converting import content, run
from tests.tiers import count

SYSTEM_CALLS = ("pwrite", "write", "fsync", "mkdir", "rename", "unlink", "ftruncate", "posix_fallocate", "open")
FORK = multiprocessing.get_context("fork")


def die_at_call(source: Path, destination: Path, number: int, options: dict[str, Any]) -> None:
    """Convert, and kill this process before, during or after its n-th modifying system call."""
    calls = 0

    def deadly(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < number:
                return original(*args, **kwargs)
            moment = number % 3
            if moment == 1 and name in ("pwrite", "write"):
                original(args[0], args[1][: len(args[1]) // 2], *args[2:])
            elif moment == 2:
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("unreachable")

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, deadly(getattr(os, name), name))
    run(source, destination, **options)
    os._exit(0)


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
            target=die_at_call, args=(source, destination, chance.randint(1, 130), {"resume": attempt > 0})
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
        child = FORK.Process(target=die_at_call, args=(source, folder / "model", number, {"force": True}))
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
