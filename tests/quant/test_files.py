"""Reading untrusted files: regular files within a size, JSON within a number of values, one line for anything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quant.errors import ContainerError
from quant.files import MAX_JSON_VALUES, is_regular, parse_json_object, read_bounded
from quant.values import shown


def test_a_regular_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", ContainerError, 4) == b"text"
    assert is_regular(tmp_path / "link")


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
        ("long", "long is larger than 4 bytes and is not read"),
        ("sparse", "sparse is larger than 4 bytes and is not read"),
    ],
)
def test_what_is_not_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "long").write_bytes(b"12345")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ContainerError, match=message):
        read_bounded(tmp_path / name, ContainerError, 4)
    assert is_regular(tmp_path / name) == (name in ("long", "sparse"))


def test_json_of_too_many_values_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"a": [' + b",".join([b"[]"] * (MAX_JSON_VALUES // 2)) + b"]}"
    monkeypatch.setattr("json.loads", lambda text: pytest.fail("parsed"))
    with pytest.raises(ContainerError, match=r"x\.json holds more than 4,000,000 JSON values"):
        parse_json_object(data, "x.json", ContainerError)


def test_values_are_shown_on_one_short_line() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 2**100_000, -(2**100_000), [2**100_000], "x\n" * 10_000, {"k": deep}, list(range(10**6))):
        assert len(shown(value)) <= 60
        assert shown(value).isprintable()
    assert shown([1, None]) == "[1, None]"
