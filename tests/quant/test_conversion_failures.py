"""Conversions that meet another conversion, a full disk or a limited file system: nothing is lost, resuming works."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from quant import convert
from quant.conversion import ConversionFinished, ConversionNotice, TensorFinished
from quant.errors import ArgumentError, DestinationBusyError, DiskFullError
from tests.quant.converting import content, run, stop_after


def test_two_conversions_to_one_destination(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    first = convert(source, tmp_path / "model")
    assert any(isinstance(event, TensorFinished) for event in first)
    with pytest.raises(DestinationBusyError, match=r"another conversion to .* is running"):
        run(source, tmp_path / "model", resume=True)
    assert isinstance(list(first)[-1], ConversionFinished)
    assert content(tmp_path / "model") == expected


def convert_quietly(source: Path, destination: Path) -> None:
    try:
        run(source, destination)
    except ArgumentError:
        os._exit(3)
    os._exit(0)


def test_processes_that_race_for_one_destination(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    fork = multiprocessing.get_context("fork")
    for number in range(5):
        destination = tmp_path / str(number)
        racers = [fork.Process(target=convert_quietly, args=(source, destination)) for _ in range(3)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert sorted(racer.exitcode or 0 for racer in racers) == [0, 3, 3]
        assert content(destination) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(number) for number in range(5)]


Usage = namedtuple("Usage", "total used free")


def test_lack_of_space_is_detected_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 50_000))
    with pytest.raises(DiskFullError, match=r"has 50\.00 kB free, but the model needs 1\.\d\d MB; free some space"):
        run(source, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_space_already_used_counts_when_resuming(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(source, tmp_path / "model", 10)
    small = sum(len(data) for name, data in expected.items() if name.endswith(".json"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))
    with pytest.raises(DiskFullError, match="already written"):
        run(source, tmp_path / "model", resume=True)
    # The missing space is for the small files and a margin of 1 MiB, not for the weights a second time.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, small + (1 << 20)))
    run(source, tmp_path / "model", resume=True)
    assert content(tmp_path / "model") == expected


@pytest.mark.parametrize(
    ("call", "number"),
    [("pwrite", 1), ("pwrite", 30), ("write", 1), ("write", 20), ("posix_fallocate", 1), ("fsync", 1), ("fsync", 4)],
)
def test_a_disk_that_fills_up(
    source: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
) -> None:
    original = getattr(os, call)
    calls = 0

    def full(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DiskFullError, match=r"cannot be written: No space left on device; .* resume=True$"):
            run(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    if call == "posix_fallocate":
        assert list(tmp_path.iterdir()) == []
    run(source, tmp_path / "model", resume=True)
    assert content(tmp_path / "model") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_journal_line_that_fits_only_half(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = os.write, 0

    def half(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        return original(descriptor, data[: len(data) // 2] if calls == 7 else data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(DiskFullError):
            run(source, tmp_path / "model")
    assert ConversionNotice("resuming: 5 of 27 tensors are done") in run(source, tmp_path / "model", resume=True)
    assert content(tmp_path / "model") == expected


def convert_with_small_files_only(source: Path, destination: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        run(source, destination)
    except DiskFullError:
        os._exit(7)
    os._exit(0)


def test_a_file_size_limit_counts_as_a_full_disk(source: Path, tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(
        target=convert_with_small_files_only, args=(source, tmp_path / "model")
    )
    child.start()
    child.join()
    assert child.exitcode == 7
    assert list(tmp_path.iterdir()) == []


def test_file_systems_that_cannot_reserve(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    run(source, tmp_path / "model")
    assert content(tmp_path / "model") == expected


def test_other_system_errors_are_explained(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "pwrite", denied)
    with pytest.raises(ArgumentError, match=r"cannot be written: Permission denied; check its permissions"):
        run(source, tmp_path / "model")
