"""Pulls of GGUF models: one of several in a repository, with all its parts, downloaded before the conversion."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.clocks import wait_for
from tests.gguf_models import write_gguf
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run as convert_all
from tests.store.hub_server import COMMIT, HubState, serving
from tests.store.pulls import SHAPE, Hub, assert_same, error_line

FIRST, SECOND = "tiny-Q8_0-00001-of-00002.gguf", "tiny-Q8_0-00002-of-00002.gguf"
NAME = "tiny-Q8_0-imported"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    checkpoint = make_checkpoint(folder / "Tiny", config_overrides=SHAPE)
    files = folder / "Tiny-GGUF"
    (files / "Q8_0").mkdir(parents=True)
    write_gguf(checkpoint, files / "Q8_0" / "tiny-Q8_0.gguf", parts=2)
    write_gguf(checkpoint, files / "tiny-Q4_0.gguf", "Q4_0")
    write_gguf(checkpoint, files / "tiny-BF16.gguf", "BF16")
    (files / "README.md").write_text("# Tiny\n")
    return files


@pytest.fixture(scope="module")
def local(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the conversion that a pull must equal."""
    destination = tmp_path_factory.mktemp("local") / NAME
    convert_all(repository / "Q8_0" / FIRST, destination)
    return destination


@pytest.fixture
def hub(repository: Path, tmp_path: Path) -> Iterator[Hub]:
    state = HubState({"Qwen/Tiny-GGUF": repository})
    with serving(state) as url:
        yield Hub(state, url, repository, tmp_path)


def test_all_parts_are_pulled_and_imported(hub: Hub, local: Path) -> None:
    hub.state.cuts = 5
    code, out, err = hub.pull("Qwen/Tiny-GGUF", "--file", "*q8_0*.gguf")
    assert (code, out) == (0, f"{hub.models / NAME}\n"), err
    assert_same(hub.models / NAME, local)
    source = json.loads((hub.models / NAME / "manifest.json").read_text(encoding="utf-8"))["source"]
    assert (source["repository"], source["revision"], source["file"]) == ("Qwen/Tiny-GGUF", COMMIT, f"Q8_0/{FIRST}")
    assert set(hub.state.sent) == {FIRST, SECOND}


def test_a_wrong_checksum_of_the_second_part(hub: Hub, local: Path) -> None:
    damaged = hub.source / "Q8_0" / SECOND
    intact = damaged.read_bytes()
    hub.state.checksums[SECOND] = hub.state.checksum(damaged)
    damaged.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        code, _, err = hub.pull("Qwen/Tiny-GGUF", "--file", "Q8_0/*")
    finally:
        damaged.write_bytes(intact)
    assert code == 1
    assert error_line(err) == (
        f"Qwen/Tiny-GGUF: Q8_0/{SECOND} arrived with a wrong checksum and was removed; pull again to fetch it"
    )
    assert not (hub.models / NAME).exists()
    before = hub.state.sent[FIRST]
    code, _, err = hub.pull("Qwen/Tiny-GGUF", "--file", "Q8_0/*")
    assert code == 0, err
    assert_same(hub.models / NAME, local)
    # The first part was there: only its beginning was fetched a second time, for the plan.
    beginning = min(8 << 20, (hub.source / "Q8_0" / FIRST).stat().st_size)
    assert hub.state.sent[FIRST] - before <= beginning


def test_a_kill_between_the_parts_resumes(hub: Hub, local: Path) -> None:
    process = hub.start("Qwen/Tiny-GGUF", "--file", "*Q8_0*")
    part = hub.models / f".{NAME}.pull" / f"{FIRST}.verified"
    wait_for(part.exists, "the first part")
    process.kill(signal.SIGKILL)
    process.wait()
    code, _, err = hub.pull("Qwen/Tiny-GGUF", "--file", "*Q8_0*")
    assert code in (0, 2), err  # 2: the kill came after the end.
    assert_same(hub.models / NAME, local)


def test_a_file_without_quantised_tensors_becomes_q4(hub: Hub) -> None:
    code, out, err = hub.pull("Qwen/Tiny-GGUF", "--file", "*bf16*", "--keep-checkpoint")
    assert (code, out) == (0, f"{hub.models / 'tiny-BF16-q4'}\n"), err
    kept = hub.models / "Tiny-GGUF"
    assert [path.name for path in kept.iterdir()] == ["tiny-BF16.gguf"]
    assert (kept / "tiny-BF16.gguf").read_bytes() == (hub.source / "tiny-BF16.gguf").read_bytes()


def test_a_repository_of_gguf_files_names_them_and_the_command(hub: Hub) -> None:
    code, _, err = hub.pull("Qwen/Tiny-GGUF")
    assert code == 3
    line = error_line(err)
    assert line.startswith(
        "Qwen/Tiny-GGUF has GGUF files and no checkpoint: Q8_0/tiny-Q8_0-00001-of-00002.gguf (2 part"
    )
    assert line.endswith("choose one with qwchat pull Qwen/Tiny-GGUF --file tiny-Q8_0-00001-of-00002.gguf")
    code, _, err = hub.pull("Qwen/Tiny-GGUF", "--file", "*.gguf")
    assert code == 2
    assert "matches 3 models of Qwen/Tiny-GGUF: " in error_line(err)


def test_a_disk_that_is_too_small_is_found_before_the_download(hub: Hub) -> None:
    code, _, err = hub.pull("Qwen/Tiny-GGUF", "--file", "*Q8_0*", FREE_DISK="70000000")
    assert code == 1
    assert error_line(err).startswith(f"{hub.models} has 70.00 MB free, but ")
    assert not list(hub.models.rglob("*.gguf"))


def test_another_architecture_is_refused_before_the_download(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "llama.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4096, 2048), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hub.state.repositories["Qwen/Llama"] = folder
    code, _, err = hub.pull("Qwen/Llama", "--file", "*")
    assert code == 3
    assert "llama" in error_line(err)
    assert hub.state.sent["llama.gguf"] <= 8 << 20
    assert not hub.models.exists()


def test_the_repair_command_names_the_file(hub: Hub) -> None:
    code, _, err = hub.pull("Qwen/Tiny-GGUF", "--file", "*Q4_0*")
    assert code == 0, err
    with (hub.models / "tiny-Q4_0-imported" / "weights.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    ran = hub.run("verify", "tiny-Q4_0-imported")
    command = f"qwchat pull Qwen/Tiny-GGUF@{COMMIT} --as tiny-Q4_0-imported --file tiny-Q4_0.gguf"
    assert (ran.returncode, command in ran.stderr.decode()) == (3, True)
