"""The background check of a model at its first use, and the record of intact models."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwchat
from quant import convert, verification
from quant.container import WEIGHTS_NAME, open_model
from qwchat import integrity
from qwchat.errors import DamagedModelError, SnapshotError
from qwchat.integrity import CHECKED_FILES, Integrity
from tests.clocks import PATIENCE_SECONDS
from tests.quant.checkpoints import make_checkpoint

ROW = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrity")
    list(convert(make_checkpoint(folder / "source", config_overrides={"hidden_size": 128}), folder / "model"))
    return folder / "model"


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the record of this test."""
    path = tmp_path / "cache" / "verification" / "intact"
    monkeypatch.setattr(integrity, "record_path", lambda: path)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the sizes of all reads of weights.bin."""
    sizes: list[int] = []
    read = os.pread

    def pread(descriptor: int, size: int, position: int) -> bytes:
        sizes.append(size)
        return read(descriptor, size, position)

    monkeypatch.setattr(os, "pread", pread)
    return sizes


def damage(model: Path, name: str = ROW) -> None:
    path = model / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[open_model(model).manifest["tensors"][name]["parts"]["codes"]["offset"]] ^= 1
    path.write_bytes(data)


def checked(model: Path) -> Integrity:
    found = Integrity(open_model(model))
    found.start()
    assert found.wait(PATIENCE_SECONDS)
    found.close()
    return found


def test_an_intact_model_is_read_once(model: Path, reads: list[int]) -> None:
    total = open_model(model).total_bytes
    assert checked(model).intact
    assert sum(reads) == total
    again = Integrity(open_model(model))
    assert again.intact, "known before the check starts"
    again.start()
    assert (again.wait(0), again.total_bytes, sum(reads)) == (True, 0, total)


@pytest.mark.parametrize("name", [WEIGHTS_NAME, *CHECKED_FILES])
def test_a_touched_file_is_checked_again(model: Path, reads: list[int], name: str) -> None:
    checked(model)
    reads.clear()
    (model / name).touch()
    assert checked(model).intact
    assert sum(reads) == open_model(model).total_bytes
    assert Integrity(open_model(model)).intact


def test_a_copy_is_checked_like_another_model(model: Path, tmp_path: Path) -> None:
    checked(model)
    shutil.copytree(model, tmp_path / "copy")
    assert not Integrity(open_model(tmp_path / "copy")).intact


def test_editable_files_are_checked_by_the_command_only(model: Path) -> None:
    (model / "generation_config.json").write_text('{"temperature": 0.5}')
    assert checked(model).intact


@pytest.mark.parametrize("name", [WEIGHTS_NAME, *CHECKED_FILES])
def test_damage_is_raised_and_not_recorded(model: Path, name: str) -> None:
    if name == WEIGHTS_NAME:
        damage(model)
    else:
        (model / name).write_bytes((model / name).read_bytes() + b" ")
    for _ in range(2):
        found = checked(model)
        assert not found.intact
        named = f"tensor {ROW}" if name == WEIGHTS_NAME else name
        with pytest.raises(DamagedModelError) as caught:
            found.raise_if_damaged()
        assert str(caught.value) == (
            f"{model}: {named} is damaged (its content does not match the checksum in manifest.json): "
            "convert the model again"
        )


def test_several_damaged_files_are_named_in_one_line() -> None:
    damaged = {f"tensor t{number}": "differs" for number in range(5)}
    expected = (
        "/m: 5 tensors or files are damaged (tensor t0, tensor t1, tensor t2 and 2 more): convert the model again"
    )
    assert str(DamagedModelError(Path("/m"), damaged)) == expected
    two = DamagedModelError(Path("/m"), {"a": "x", "b": "y"}).with_remedy("try this")
    assert str(two) == "/m: 2 tensors or files are damaged (a, b): try this"


def test_a_file_that_changes_during_the_check_is_not_recorded(model: Path, record: Path) -> None:
    found = Integrity(open_model(model))
    (model / "config.json").touch()
    found.start()
    assert found.wait(PATIENCE_SECONDS)
    assert found.intact
    assert not record.exists()


def test_closing_stops_a_check_at_once_and_records_nothing(
    model: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, left = threading.Event(), threading.Event()
    read = os.pread

    def slow(descriptor: int, size: int, position: int) -> bytes:
        entered.set()
        assert left.wait(PATIENCE_SECONDS)
        return read(descriptor, size, position)

    monkeypatch.setattr(os, "pread", slow)
    found = Integrity(open_model(model))
    found.start()
    assert entered.wait(PATIENCE_SECONDS)
    threading.Timer(0.1, left.set).start()
    found.close()
    assert not any(thread.name == "integrity" for thread in threading.enumerate())
    assert not found.intact
    assert found.wait()
    assert not record.exists()


def test_waiting_takes_over_the_work_of_the_background_thread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PIECE_BYTES", 256)
    monkeypatch.setattr(integrity, "_work_at_low_priority", lambda check: check.work(lambda seconds: time.sleep(0.01)))
    for seed in range(5):
        (model / "config.json").touch()
        found = Integrity(open_model(model))
        found.start()
        time.sleep(0.01 * seed)
        assert found.wait(PATIENCE_SECONDS)
        assert found.intact
        found.close()


def test_an_error_of_a_worker_is_raised_in_the_waiting_thread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(check: verification.Verification) -> None:
        raise MemoryError

    monkeypatch.setattr(integrity, "_work_at_low_priority", fail)
    found = Integrity(open_model(model))
    found.start()
    assert found.wait(PATIENCE_SECONDS)
    assert not found.intact
    with pytest.raises(MemoryError):
        found.raise_if_damaged()


def test_the_record_is_private_and_bounded(model: Path, record: Path) -> None:
    for number in range(300):
        integrity.mark_intact(f"{number:064x}")
    assert integrity.intact_states()[0] == f"{299:064x}"
    assert len(integrity.intact_states()) == 256
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in record.parent.iterdir()] == ["intact"]
    integrity.unmark_intact(f"{298:064x}")
    assert integrity.intact_states()[:2] == [f"{299:064x}", f"{297:064x}"]


def hostile(record: Path) -> Iterator[None]:
    """Create untrustworthy records one after the other, each with the line that would skip the check."""
    text = record.read_text()
    record.chmod(0o666)
    yield
    record.chmod(0o600)
    record.parent.chmod(0o777)
    yield
    record.parent.chmod(0o700)
    record.rename(record.with_name("elsewhere"))
    record.symlink_to(record.with_name("elsewhere"))
    yield
    record.unlink()
    record.mkdir()
    yield
    record.rmdir()
    os.mkfifo(record)
    yield
    record.unlink()
    record.write_bytes(b"\xff" * 100_000 + b"\n" + text.encode())
    yield


def test_a_record_that_others_can_write_is_ignored(model: Path, record: Path) -> None:
    checked(model)
    assert Integrity(open_model(model)).intact
    for _ in hostile(record):
        assert not Integrity(open_model(model)).intact


def test_without_a_writable_record_every_use_checks(model: Path, record: Path, reads: list[int]) -> None:
    record.parent.parent.write_text("a file where the folder should be")
    for count in (1, 2):
        assert checked(model).intact
        assert sum(reads) == count * open_model(model).total_bytes


def test_the_api_raises_at_the_next_event_and_keeps_no_snapshot(model: Path, tmp_path: Path) -> None:
    damage(model)
    with qwchat.load(model, threads=1) as loaded:
        assert loaded.integrity.wait(PATIENCE_SECONDS)
        with pytest.raises(DamagedModelError, match=f"tensor {ROW} is damaged"):
            next(iter(loaded.generate("hello", max_tokens=2)))
        with pytest.raises(DamagedModelError):
            loaded.logits([1, 2])
        with pytest.raises(SnapshotError, match="the KV cache is not saved"):
            loaded.save_cache(tmp_path / "cache.kv")
    with qwchat.load(model, threads=1, verify=False) as loaded:
        assert loaded.integrity.intact
        assert len(list(loaded.generate("hello", max_tokens=2))) >= 2
        loaded.save_cache(tmp_path / "cache.kv")


def test_a_model_that_is_removed_while_it_is_used_stays_usable(model: Path) -> None:
    with qwchat.load(model) as opened:
        shutil.rmtree(model.rename(model.with_name(".removed")))
        assert opened.integrity.wait(PATIENCE_SECONDS)
        *_, done = opened.generate("hello", max_tokens=3, seed=1)
        assert done.token_ids
