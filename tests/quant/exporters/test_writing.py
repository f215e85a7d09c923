"""What an export writes where: destinations, damage, resuming, kill -9."""

from __future__ import annotations

import random
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quant.container import ModelFolder, open_model
from quant.destination import lock_path, partial_folder
from quant.errors import ArgumentError, ContainerError, DestinationBusyError, DiskFullError
from quant.exporters import export
from quant.exporters.export_events import ExportAdvanced, ExportPlanned
from tests.quant.converting import content
from tests.quant.deadly_calls import FORK, die_at_call
from tests.quant.exporters.exporting import finished, model_of, notices, run
from tests.tiers import count

SHARD_BYTES = 40_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return model_of(tmp_path_factory.mktemp("source"), preset="q4")


@pytest.fixture(scope="module")
def expected(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    destination = tmp_path_factory.mktemp("expected") / "export"
    run(model, destination, "safetensors", shard_bytes=SHARD_BYTES)
    return content(destination)


def stop_after(model: ModelFolder, destination: Path, events: int, **options: Any) -> None:
    """Start an export and cancel it after a number of events."""
    started = export(model.path, destination, "safetensors", shard_bytes=SHARD_BYTES, **options)
    for _ in range(events):
        next(started)
    started.close()


def test_the_result_does_not_depend_on_threads(model: ModelFolder, tmp_path: Path, expected: dict[str, bytes]) -> None:
    run(model, tmp_path / "export", "safetensors", shard_bytes=SHARD_BYTES, threads=3)
    assert content(tmp_path / "export") == expected


def test_progress_ends_with_all_bytes(model: ModelFolder, tmp_path: Path) -> None:
    planned, *others = run(model, tmp_path / "export", "safetensors", shard_bytes=SHARD_BYTES)
    assert isinstance(planned, ExportPlanned)
    done = [event.bytes_done for event in others if isinstance(event, ExportAdvanced)]
    assert done == sorted(done)
    assert done[-1] == planned.total_bytes_in == sum(model.tensor(name).nbytes for name in model.names)


def test_a_dry_run_writes_nothing(model: ModelFolder, tmp_path: Path) -> None:
    (planned,) = run(model, tmp_path / "export", "safetensors", dry_run=True)
    assert isinstance(planned, ExportPlanned)
    assert list(tmp_path.iterdir()) == []


def test_resuming_keeps_finished_files(model: ModelFolder, tmp_path: Path, expected: dict[str, bytes]) -> None:
    stop_after(model, tmp_path / "export", 20)
    events = run(model, tmp_path / "export", "safetensors", shard_bytes=SHARD_BYTES, resume=True)
    (notice,) = notices(events)
    assert int(notice.split()[1]) >= 2, notice
    assert content(tmp_path / "export") == expected
    again = run(model, tmp_path / "export", "safetensors", shard_bytes=SHARD_BYTES, resume=True)
    assert notices(again) == [f"{tmp_path / 'export'} is already complete"]
    assert finished(again).errors == finished(events).errors
    assert finished(again).checksums == finished(events).checksums


def test_a_finished_file_that_was_damaged_is_written_again(
    model: ModelFolder, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    stop_after(model, tmp_path / "export", 20)
    first = sorted(partial_folder(tmp_path / "export").glob("*.safetensors"))[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    run(model, tmp_path / "export", "safetensors", shard_bytes=SHARD_BYTES, resume=True)
    assert content(tmp_path / "export") == expected


def test_resuming_another_export_is_refused(model: ModelFolder, tmp_path: Path) -> None:
    stop_after(model, tmp_path / "export", 20)
    with pytest.raises(ArgumentError, match=r"is of another model or has other settings; run without resume to start"):
        run(model, tmp_path / "export", "safetensors", shard_bytes=SHARD_BYTES, dtype="f32", resume=True)
    events = run(model, tmp_path / "export", "safetensors", dtype="f32")
    assert notices(events) == ["an unfinished export was discarded; resume=True would have continued it"]


def test_only_an_export_is_replaced_and_only_with_force(
    model: ModelFolder, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    destination = tmp_path / "export"
    run(model, destination, "safetensors", dtype="f32")
    with pytest.raises(ArgumentError, match="already contains an export; use force=True to replace it"):
        run(model, destination, "safetensors", shard_bytes=SHARD_BYTES)
    run(model, destination, "safetensors", shard_bytes=SHARD_BYTES, force=True)
    assert content(destination) == expected
    (destination / "notes.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="is a folder with other files"):
        run(model, destination, "safetensors", force=True)
    shutil.copytree(model.path, tmp_path / "model")
    with pytest.raises(ArgumentError, match="is a folder with other files"):
        run(model, tmp_path / "model", "safetensors", force=True)
    with pytest.raises(ArgumentError, match="is inside the source"):
        run(model, model.path / "export", "safetensors")
    with pytest.raises(ArgumentError, match="is not a folder; create it first"):
        run(model, tmp_path / "missing" / "export", "safetensors")


def test_two_exports_to_one_folder_exclude_each_other(model: ModelFolder, tmp_path: Path) -> None:
    running = export(model.path, tmp_path / "export", "safetensors")
    next(running)
    next(running)
    assert lock_path(tmp_path / "export").exists()
    with pytest.raises(DestinationBusyError, match="is running; wait for it"):
        run(model, tmp_path / "export", "safetensors")
    running.close()


def test_a_full_disk_is_noticed_before_anything_is_written(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(DiskFullError, match=r"1\.00 kB free, but the export needs 1\.27 MB"):
        run(model, tmp_path / "export", "safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["weights.bin", "tokenizer.json"])
def test_a_damaged_model_is_not_exported(model: ModelFolder, tmp_path: Path, file: str) -> None:
    shutil.copytree(model.path, tmp_path / "model")
    data = bytearray((tmp_path / "model" / file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model" / file).write_bytes(data)
    with pytest.raises(ContainerError, match="does not match its checksum"):
        run(open_model(tmp_path / "model"), tmp_path / "export", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "f64"}, "type 'f64' is not supported; choose one of bf16, f16, f32"),
        ({"bits": 5}, "5 bits are not supported; choose 4 or 8"),
        ({"shard_bytes": 0}, "files of 0 bytes are not possible"),
        ({"threads": 0}, "0 threads are not enough"),
    ],
)
def test_invalid_arguments(model: ModelFolder, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        run(model, tmp_path / "export", "safetensors", **options)
    with pytest.raises(ArgumentError, match="unknown kind of export 'onnx'; choose one of"):
        run(model, tmp_path / "export", "onnx")


def export_all(model: Path, destination: Path, **options: Any) -> None:
    for _ in export(model, destination, "safetensors", shard_bytes=SHARD_BYTES, **options):
        pass


@pytest.mark.parametrize("seed", range(count(20, 3)))
def test_killed_at_random_system_calls_and_resumed(
    model: ModelFolder, tmp_path: Path, expected: dict[str, bytes], seed: int
) -> None:
    chance = random.Random(seed)
    destination = tmp_path / "export"
    for attempt in range(3):
        number = chance.randint(1, 120)
        child = FORK.Process(
            target=die_at_call, args=(number, partial(export_all, model.path, destination, resume=attempt > 0))
        )
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        assert not destination.exists() or content(destination) == expected
    run(model, destination, "safetensors", shard_bytes=SHARD_BYTES, resume=True)
    assert content(destination) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.slow
def test_killed_at_every_one_of_the_last_calls(model: ModelFolder, tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Kill during the last files, syncs and renames, while an older export is replaced."""
    for number in range(60, 300):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(model, folder / "export", "safetensors")
        old = content(folder / "export")
        child = FORK.Process(
            target=die_at_call, args=(number, partial(export_all, model.path, folder / "export", force=True))
        )
        child.start()
        child.join()
        complete = [content(path) for path in folder.iterdir() if path.is_dir()]
        assert old in complete or expected in complete
        run(model, folder / "export", "safetensors", shard_bytes=SHARD_BYTES, resume=True, force=True)
        assert content(folder / "export") == expected
        assert [path.name for path in folder.iterdir()] == ["export"]
        if child.exitcode == 0:
            return
    pytest.fail("the export makes more system calls than were tried")
