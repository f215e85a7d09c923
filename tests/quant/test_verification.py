"""Check of a model folder against its manifest: every byte is covered, with any number of threads."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from quant import convert, verification
from quant.container import MANIFEST_NAME, WEIGHTS_NAME, open_model
from quant.verification import PADDING, Verification, folder_state, verify
from tests.quant.checkpoints import make_checkpoint

DIFFERS = "its content does not match the checksum in manifest.json"
ROW = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verification")
    narrow = {"num_attention_heads": 8, "num_key_value_heads": 1}  # 8 biases leave 32 of 64 bytes as padding
    list(convert(make_checkpoint(folder / "source", config_overrides=narrow), folder / "model", preset="q4-small"))
    return folder / "model"


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.write_bytes(data)


def test_a_damaged_tensor_is_named(model: Path) -> None:
    folder = open_model(model)
    assert verify(folder) == {}
    flip(model / WEIGHTS_NAME, folder.manifest["tensors"][ROW]["parts"]["scales"]["offset"] + 3)
    assert verify(open_model(model)) == {ROW: DIFFERS}


def test_every_byte_is_covered(model: Path) -> None:
    path = model / WEIGHTS_NAME
    drawn = random.Random(1)
    size = path.stat().st_size
    folder = open_model(model)
    owners = {
        name: [(part["offset"], part["offset"] + part["nbytes"]) for part in entry["parts"].values()]
        for name, entry in folder.manifest["tensors"].items()
    }
    taken = bytearray(size)
    for start, stop in (bounds for parts in owners.values() for bounds in parts):
        taken[start:stop] = b"\1" * (stop - start)
    assert 0 in taken, "this model has no padding to damage"
    for position in [0, size - 1, taken.index(0), *(drawn.randrange(size) for _ in range(100))]:
        owner = [name for name, parts in owners.items() if any(start <= position < stop for start, stop in parts)]
        flip(path, position)
        assert list(verify(open_model(model))) == (owner or [PADDING])
        flip(path, position)
    assert verify(open_model(model)) == {}


def test_the_other_files_are_covered(model: Path) -> None:
    names = sorted({path.name for path in model.iterdir()} - {MANIFEST_NAME, WEIGHTS_NAME})
    folder = open_model(model)
    for name in names:
        flip(model / name, 20)
    assert verify(folder) == dict.fromkeys(names, DIFFERS)
    (model / names[0]).unlink()
    assert verify(folder)[names[0]] == "it is missing or cannot be read"
    some = Verification(folder, ("tokenizer.json", "nonsense"))
    some.work()
    assert some.damaged == {"tokenizer.json": DIFFERS}


def test_any_number_of_threads_reads_each_byte_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PIECE_BYTES", 512)
    for count in (1, 2, 7):
        check = Verification(open_model(made))
        threads = [threading.Thread(target=check.work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert check.finished
        assert check.done_bytes == check.total_bytes
        assert check.damaged == {}


def test_a_throttled_worker_leaves_its_part_to_the_others(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PIECE_BYTES", 512)
    check = Verification(open_model(made))
    check.work(lambda seconds: check.stop_throttled())
    assert not check.finished
    assert check.done_bytes < check.total_bytes
    check.work()
    assert check.finished
    assert check.done_bytes == check.total_bytes
    assert check.damaged == {}


def test_stopping_waits_for_one_piece(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PIECE_BYTES", 512)
    check = Verification(open_model(made), files=())
    pieces: list[float] = []

    def throttle(seconds: float) -> None:
        pieces.append(seconds)
        check.stop()

    check.work(throttle)
    assert len(pieces) == 1
    assert not check.finished


def test_unreadable_sectors_are_reported(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_model(made)
    bad = folder.manifest["tensors"][ROW]["parts"]["codes"]["offset"]
    read = os.pread

    def pread(descriptor: int, size: int, position: int) -> bytes:
        if position == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, size, position)

    monkeypatch.setattr(os, "pread", pread)
    check = Verification(folder)
    check.work()
    assert check.finished
    assert check.damaged == {ROW: "it cannot be read: Input/output error"}


def test_files_replaced_or_truncated_meanwhile_are_reported(model: Path) -> None:
    folder = open_model(model)
    assert folder.weights_status.st_size == folder.total_bytes
    shutil.copy(model / WEIGHTS_NAME, model / "other")
    (model / "other").replace(model / WEIGHTS_NAME)
    assert verify(folder) == {WEIGHTS_NAME: "it was written or replaced while the model was open"}
    os.truncate(model / WEIGHTS_NAME, folder.total_bytes // 2)
    found = verify(folder)
    assert found[WEIGHTS_NAME].startswith("it was written")
    assert len(found) > 1
    (model / WEIGHTS_NAME).unlink()
    check = Verification(folder)
    check.work()
    assert check.finished
    assert check.damaged == {WEIGHTS_NAME: "it cannot be read: No such file or directory"}


@pytest.mark.parametrize("reads", [0, 1, 5])
def test_a_folder_that_is_removed_meanwhile_is_not_damaged(
    model: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """Remove the folder as `qwchat rm` does, before the check or after some of its reads."""
    folder = open_model(model)
    folder.tensor(folder.names[0])  # Maps the weights.
    left, read = reads, os.pread

    def remove_then_read(descriptor: int, size: int, position: int) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            remove()
        return read(descriptor, size, position)

    def remove() -> None:
        shutil.rmtree(model.rename(model.with_name(".removed")))

    if reads == 0:
        remove()
    monkeypatch.setattr(verification.os, "pread", remove_then_read)
    check = Verification(folder)
    check.work()
    assert (check.removed, check.damaged, check.finished) == (True, {}, True)
    assert folder.tensor(folder.names[-1]) is not None


def test_the_state_changes_with_every_file_and_with_nothing_else(model: Path) -> None:
    before = folder_state(open_model(model), ("config.json",))
    assert folder_state(open_model(model), ("config.json",)) == before
    (model / "tokenizer.json").touch()
    assert folder_state(open_model(model), ("config.json",)) == before
    assert folder_state(open_model(model), ("config.json", "tokenizer.json")) != before
    for name in ("config.json", WEIGHTS_NAME):
        status = (model / name).stat()
        (model / name).touch()
        os.utime(model / name, ns=(status.st_atime_ns, status.st_mtime_ns))  # A careful copy keeps the time stamps.
        assert folder_state(open_model(model), ("config.json",)) != before
        before = folder_state(open_model(model), ("config.json",))
    manifest = (model / MANIFEST_NAME).read_text()
    (model / MANIFEST_NAME).write_text(manifest + "\n")
    assert folder_state(open_model(model), ("config.json",)) != before
