"""Pulls of quantised repositories, which are downloaded before they are converted."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiers
from tests.quant.converting import run as convert_all
from tests.quant.sources.packing import FORMS, WIDE, make_packed
from tests.store.hub_server import COMMIT, HubState, serving
from tests.store.pulls import Hub, assert_same, error_line

CONFIG = {**WIDE, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 2000}
FILE = "model.safetensors"
NAME = "Tiny-imported"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "Tiny"
    make_packed(folder, FORMS[0], config=CONFIG)
    return folder


@pytest.fixture(scope="module")
def local(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the conversion that a pull must equal."""
    destination = tmp_path_factory.mktemp("local") / NAME
    convert_all(checkpoint, destination)
    return destination


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    state = HubState({"Qwen/Tiny": checkpoint})
    with serving(state) as url:
        yield Hub(state, url, checkpoint, tmp_path)


def test_a_pull_imports_the_codes(hub: Hub, local: Path) -> None:
    hub.state.cuts = 3
    code, out, err = hub.pull("Qwen/Tiny")
    assert (code, out) == (0, f"{hub.models / NAME}\n"), err
    assert_same(hub.models / NAME, local)
    manifest = json.loads((hub.models / NAME / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["preset"] == "imported"
    assert manifest["source"]["repository"] == "Qwen/Tiny"
    assert manifest["source"]["revision"] == COMMIT
    assert "lin4" in {entry["format"] for entry in manifest["tensors"].values()}
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 2
    assert f"{NAME} exists already: choose another name" in err


def test_a_preset_quantises_again_and_the_checkpoint_can_be_kept(hub: Hub) -> None:
    code, out, err = hub.pull("Qwen/Tiny", "--preset", "q8", "--keep-checkpoint", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["preset"], report["checkpoint"]) == ("q8", str(hub.models / "Tiny"))
    assert report["files"] == [FILE]
    assert {path.name for path in hub.models.iterdir()} == {"Tiny", "Tiny-q8"}
    for file in hub.source.iterdir():
        assert (hub.models / "Tiny" / file.name).read_bytes() == file.read_bytes()


def test_a_wrong_checksum_is_never_converted(hub: Hub, local: Path) -> None:
    hub.state.checksums[FILE] = "0" * 64
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 1
    assert error_line(err) == (
        f"Qwen/Tiny: {FILE} arrived with a wrong checksum and was removed; pull again to fetch it"
    )
    assert not (hub.models / NAME).exists()
    hub.state.checksums.clear()
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 0, err
    assert_same(hub.models / NAME, local)


def test_kills_at_any_moment_resume(hub: Hub, local: Path) -> None:
    rng = random.Random(5)
    kills = tiers.count(10, 2)
    for _ in range(kills):
        process = hub.start("Qwen/Tiny")
        time.sleep(rng.uniform(0.2, 2.0))
        process.kill(signal.SIGKILL)
        process.wait()
    if not (hub.models / NAME).exists():
        code, _, err = hub.pull("Qwen/Tiny")
        assert code == 0, err
    else:
        hub.pull("Qwen/Tiny")  # A kill between the last two steps leaves a folder that the next call removes.
    assert_same(hub.models / NAME, local)
    # A kill loses what was under way, never what had arrived.
    assert hub.state.sent[FILE] <= (hub.source / FILE).stat().st_size + (kills + 1) * (2 << 20)


def test_a_disk_that_is_too_small_is_found_before_the_download(hub: Hub) -> None:
    code, _, err = hub.pull("Qwen/Tiny", FREE_DISK="70000000")
    assert code == 1
    line = error_line(err)
    assert line.startswith(f"{hub.models} has 70.00 MB free, but ")
    assert "MB are needed for the model (" in line
    assert hub.state.sent[FILE] == 0


def test_the_repair_command_of_a_pulled_model_pulls_it_again(hub: Hub) -> None:
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 0, err
    with (hub.models / NAME / "weights.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    ran = hub.run("verify", NAME)
    assert ran.returncode == 3
    assert f"pull it again with qwchat pull Qwen/Tiny@{COMMIT} --as {NAME}" in ran.stderr.decode()
