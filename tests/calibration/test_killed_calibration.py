"""kill -9 at random points: the rest never opens, and resuming gives the bytes of an uninterrupted calibration."""

from __future__ import annotations

import random
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.calibration.test_collect import calibrated, pieces_of
from tests.quant.checkpoints import make_checkpoint
from tests.quant.deadly_calls import FORK, die_at_call
from tests.tiers import count

PIECES = pieces_of([60, 77])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny", config_overrides={"head_dim": 32})


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> bytes:
    return calibrated(checkpoint, checkpoint.parent / "whole", PIECES, threads=1).read_bytes()


@pytest.mark.parametrize("seed", range(count(20, 2)))
def test_killed_at_a_random_system_call(checkpoint: Path, expected: bytes, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "s"
    for _ in range(2):
        work = partial(calibrated, checkpoint, path, PIECES, threads=1)
        child = FORK.Process(target=die_at_call, args=(chance.randint(1, 60), work))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        assert not path.exists() or path.read_bytes() == expected
    assert calibrated(checkpoint, path, PIECES, threads=1).read_bytes() == expected
    assert [each.name for each in tmp_path.iterdir()] == ["s"]
