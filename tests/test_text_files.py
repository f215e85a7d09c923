"""Atomic replacement of files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qwchat.errors import UsageError
from qwchat.text_files import replace_text, write_atomically


def test_a_file_and_a_link_are_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to("nowhere")
    for path in (file, link, tmp_path / "new"):
        replace_text(path, "text", 0o600)
        assert path.read_text() == "text"
        assert not path.is_symlink()


def test_pipes_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    pipe, folder, place = tmp_path / "pipe", tmp_path / "folder", tmp_path / "socket"
    os.mkfifo(pipe)
    folder.mkdir()
    before = [path.lstat().st_mode for path in (pipe, folder)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        for path in (pipe, folder, place):
            with pytest.raises(OSError, match="it is not a regular file"):
                replace_text(path, "text", 0o600)
    assert [path.lstat().st_mode for path in (pipe, folder)] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe", "socket"]


def test_files_are_written_atomically_and_not_overwritten_by_default(tmp_path: Path) -> None:
    path = tmp_path / "talk.md"
    write_atomically(path, "one\n", overwrite=False)
    with pytest.raises(UsageError, match=r"talk\.md already exists: choose another name"):
        write_atomically(path, "two\n", overwrite=False)
    assert path.read_text() == "one\n"
    write_atomically(path, "two\n", overwrite=True)
    assert path.read_text() == "two\n"
    assert [file.name for file in tmp_path.iterdir()] == ["talk.md"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "talk.md").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="already exists"):
        write_atomically(tmp_path / "talk.md", "x", overwrite=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_atomically(tmp_path / "none" / "talk.md", "x", overwrite=False)
    assert str(caught.value) == f"cannot write {tmp_path}/none/talk.md: No such file or directory"
