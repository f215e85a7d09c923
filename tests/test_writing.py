"""Replacing a file as a whole."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qwchat.writing import replace_text


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
