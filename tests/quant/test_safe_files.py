"""Reading untrusted files: regular files of limited size, JSON of limited length, one-line errors otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quant.errors import ContainerError
from quant.json_fields import short_repr
from quant.safe_files import (
    MAX_JSON_VALUES,
    NotPrivateError,
    atomic_write,
    is_regular_file,
    make_private_folder,
    open_private,
    parse_json_object,
    read_bounded,
    read_private,
)


def test_a_regular_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", ContainerError, 4) == b"text"
    assert is_regular_file(tmp_path / "link")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent does not exist; is .* the right folder"),
        ("folder", "folder is not a regular file"),
        ("pipe", "pipe is not a regular file"),
        ("zeros", "zeros is not a regular file"),
        ("ring", "ring cannot be read"),
        ("n" * 5000, "n cannot be read: File name too long"),
        ("nul\0", "cannot be read: embedded null byte"),
        ("half\ud800", "cannot be read: .*surrogates not allowed"),
        ("long", "long is larger than the limit of 4 bytes"),
        ("sparse", "sparse is larger than the limit of 4 bytes"),
    ],
)
def test_files_that_are_not_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "long").write_bytes(b"12345")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ContainerError, match=message):
        read_bounded(tmp_path / name, ContainerError, 4)
    assert is_regular_file(tmp_path / name) == (name in ("long", "sparse"))


def test_json_of_too_many_values_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"a": [' + b",".join([b"[]"] * (MAX_JSON_VALUES // 2)) + b"]}"
    monkeypatch.setattr("json.loads", lambda text: pytest.fail("parsed"))
    with pytest.raises(ContainerError, match=r"x\.json has more than 4,000,000 JSON values"):
        parse_json_object(data, "x.json", ContainerError)


def test_values_are_shown_on_one_short_line() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 2**100_000, -(2**100_000), [2**100_000], "x\n" * 10_000, {"k": deep}, list(range(10**6))):
        assert len(short_repr(value)) <= 60
        assert short_repr(value).isprintable()
    assert short_repr([1, None]) == "[1, None]"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, durable: bool, fixed: bool) -> None:
    path, part = tmp_path / "file", tmp_path / "file.part" if fixed else None
    if part is not None:
        part.write_bytes(b"what a killed process left")
    with atomic_write(path, 0o640, durable=durable, temporary_path=part) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o640
    for failure in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), atomic_write(path, durable=durable, temporary_path=part) as file:  # noqa: PT012
            file.write(b"half of tw")
            raise failure
        assert path.read_bytes() == b"one"
        assert names(tmp_path) == ["file"]


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, sync = tmp_path / "file", list[bool](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append(path.exists())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with atomic_write(path, durable=False) as file:
        file.write(b"one")
    assert synced == []
    path.unlink()
    with atomic_write(path) as file:
        file.write(b"two")
    assert synced == [False]


def test_a_private_file_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    assert make_private_folder(folder)
    path = folder / "file"
    path.write_bytes(b"text")
    path.chmod(0o600)
    assert read_private(path, 4) == b"text"
    assert read_private(path, 3) is None
    assert read_private(folder / "absent", 4) is None


@pytest.mark.parametrize("trouble", ["file", "folder", "link", "pipe", "device", "owner"])
def test_files_that_others_could_have_written_are_not_read(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "private"
    assert make_private_folder(folder)
    path = folder / "file"
    path.write_bytes(b"text")
    path.chmod(0o600)
    if trouble == "file":
        path.chmod(0o620)
    elif trouble == "folder":
        folder.chmod(0o777)
        assert not make_private_folder(folder)
    elif trouble == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        path.unlink()
        if trouble == "link":
            (folder / "real").write_bytes(b"text")
            path.symlink_to("real")
        elif trouble == "pipe":
            os.mkfifo(path, 0o600)
        else:
            path.symlink_to("/dev/zero")
    assert read_private(path, 4) is None
    if trouble in ("file", "pipe", "owner"):
        with pytest.raises(NotPrivateError, match="only you can write"):
            open_private(path)
