"""Pulling from a stand-in hub: the result, the disk, and every way in which a download breaks."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiers
from tests.clocks import wait_for
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run as convert_all
from tests.store.hub_server import COMMIT, HubState, serving
from tests.store.pulls import SHAPE, SHARDS, Hub, assert_same


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "Tiny", shards=SHARDS, config_overrides=SHAPE)


@pytest.fixture(scope="module")
def local(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the conversion that a pull must equal."""
    destination = tmp_path_factory.mktemp("local") / "Tiny-q4"
    convert_all(checkpoint, destination)
    return destination


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    state = HubState({"Qwen/Tiny": checkpoint})
    with serving(state) as url:
        yield Hub(state, url, checkpoint, tmp_path)


def test_a_pull_is_a_conversion(hub: Hub, local: Path) -> None:
    code, out, err = hub.pull("Qwen/Tiny")
    assert (code, out) == (0, f"{hub.models / 'Tiny-q4'}\n"), err
    assert_same(hub.models / "Tiny-q4", local)
    manifest = (hub.models / "Tiny-q4/manifest.json").read_text(encoding="utf-8")
    assert all(word in manifest for word in ('"Qwen/Tiny"', COMMIT, '"apache-2.0"'))
    for file in hub.source.glob("*.safetensors"):
        assert hub.state.sent[file.name] <= file.stat().st_size + (1 << 19)  # what a closed connection had under way
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 2
    assert "Tiny-q4 exists already: choose another name" in err


@pytest.mark.slow
def test_the_checkpoint_can_be_kept(hub: Hub, local: Path) -> None:
    code, _, err = hub.pull("Qwen/Tiny", "--keep-checkpoint", "--as", "mine")
    assert code == 0, err
    assert {path.name for path in hub.models.iterdir()} == {"mine", "Tiny"}
    assert (hub.models / "mine/weights.bin").read_bytes() == (local / "weights.bin").read_bytes()
    for file in hub.source.iterdir():
        assert (hub.models / "Tiny" / file.name).read_bytes() == file.read_bytes()


def test_cut_connections_are_taken_up_again(hub: Hub, local: Path) -> None:
    hub.state.cuts = tiers.count(200, 20)
    number = 0
    while hub.state.cuts:
        number += 1
        code, _, err = hub.pull("Qwen/Tiny", "--as", f"model-{number}")
        assert code == 0, err
        for name in ("weights.bin", "tokenizer.json", "config.json"):
            assert (hub.models / f"model-{number}" / name).read_bytes() == (local / name).read_bytes()
    assert sorted(path.name for path in hub.models.iterdir()) == [f"model-{n}" for n in range(1, number + 1)]


def test_kills_at_any_moment_resume(hub: Hub, local: Path) -> None:
    """No kill leaves more than the result and one shard on the disk, and none costs a finished shard."""
    rng = random.Random(5)
    largest = max(file.stat().st_size for file in hub.source.glob("*.safetensors"))
    most = sum(file.stat().st_size for file in local.iterdir()) + 1.1 * largest + SHARDS * (1 << 20) + (1 << 20)
    peak = 0

    def measure() -> None:
        nonlocal peak
        peak = max(peak, hub.disk_bytes())
        time.sleep(0.002)

    hub.state.on_chunk = measure
    kills = tiers.count(30, 3)
    for _ in range(kills):
        process = hub.start("Qwen/Tiny")
        time.sleep(rng.uniform(0.2, 3.0))
        process.kill(signal.SIGKILL)
        process.wait()
        measure()
    if not (hub.models / "Tiny-q4").exists():
        code, _, err = hub.pull("Qwen/Tiny")
        assert code == 0, err
    else:
        hub.pull("Qwen/Tiny")  # A kill between the last two steps leaves a folder that the next call removes.
    assert_same(hub.models / "Tiny-q4", local)
    assert peak <= most
    for file in hub.source.glob("*.safetensors"):
        # A kill loses what was under way, never what had arrived.
        assert hub.state.sent[file.name] <= file.stat().st_size + (kills + 1) * (2 << 20)


def test_a_wrong_checksum_is_never_converted(hub: Hub, local: Path) -> None:
    name = "model-00002-of-00003.safetensors"
    hub.state.checksums[name] = "0" * 64
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 1
    assert f"{name} arrived with a wrong checksum and was removed; pull again to fetch it" in err
    assert not (hub.models / "Tiny-q4").exists()
    assert not (hub.models / ".Tiny-q4.pull" / name).exists()
    hub.state.checksums.clear()
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 0, err
    assert_same(hub.models / "Tiny-q4", local)


@pytest.mark.slow
def test_a_busy_hub_is_asked_again(hub: Hub, local: Path) -> None:
    hub.state.statuses = [429, 429]
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 0, err
    assert_same(hub.models / "Tiny-q4", local)


def test_a_failing_hub_is_one_line_and_resumes(hub: Hub, local: Path) -> None:
    hub.state.statuses = [500] * 50
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 1
    assert "the hub answers with status 500; pull again later to resume" in err
    hub.state.statuses = []
    assert hub.pull("Qwen/Tiny")[0] == 0
    assert_same(hub.models / "Tiny-q4", local)


def test_two_pulls_of_one_model(hub: Hub, local: Path) -> None:
    hub.state.on_chunk = lambda: time.sleep(0.02)
    first = hub.start("Qwen/Tiny")
    wait_for(lambda: hub.state.sent, "the first download")
    code, _, err = hub.pull("Qwen/Tiny")
    assert (code, "another process pulls Tiny-q4: wait for it" in err) == (2, True)
    assert first.wait() == 0
    assert_same(hub.models / "Tiny-q4", local)
