"""Detect which files of a folder are opened, by the kernel (inotify) and by the audit hooks of the process."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from pathlib import Path

HAS_INOTIFY = sys.platform.startswith("linux")
_IN_OPEN, _IN_CREATE, _IN_MOVED_TO = 0x20, 0x100, 0x80
_HEADER = struct.Struct("iIII")

# Runs the program as its console script does, whose own folder comes first in the import path. Audit events that name a
# file in the folder are written to the report.
AUDITED_PROGRAM = """
import json, os, sys
folder, report = sys.argv.pop(1), sys.argv.pop(1)
descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

NAMED = ("open", "os.listdir", "os.scandir", "os.chdir", "os.mkdir", "os.rename", "os.remove", "ctypes.dlopen")

def audit(event, arguments):
    if event in NAMED and isinstance(arguments[0], (str, bytes)):
        path = os.path.normpath(os.path.join(os.getcwd(), os.fsdecode(arguments[0])))
        # os.open has no mode in its event and may be relative to another folder; then the path does not exist here.
        elsewhere = event == "open" and arguments[1] is None and not os.path.lexists(path)
        # The system looks for a library without a folder in its own folders; inotify tells if it looks here.
        elsewhere |= event == "ctypes.dlopen" and "/" not in os.fsdecode(arguments[0])
        if not elsewhere and (path == folder or path.startswith(folder + os.sep)):
            os.write(descriptor, json.dumps([event, path]).encode() + b"\\n")
    if event in ("pickle.find_class", "marshal.load", "os.system"):
        os.write(descriptor, json.dumps([event, repr(arguments)]).encode() + b"\\n")

sys.addaudithook(audit)
from qwchat.cli.main import main
main()
"""


class FolderWatch:
    """Watch `folder` and its subfolders for files that any process opens."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = -1
        self._folders: dict[int, Path] = {}
        if not HAS_INOTIFY:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        mask = _IN_OPEN | _IN_CREATE | _IN_MOVED_TO
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            number = libc.inotify_add_watch(self._descriptor, os.fsencode(place), mask)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._folders[number] = place
        self.opened()

    def opened(self) -> set[Path]:
        """Return the files and folders opened or created since the last call."""
        found: set[Path] = set()
        while HAS_INOTIFY:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                break
            position = 0
            while position < len(data):
                number, _, _, length = _HEADER.unpack_from(data, position)
                position += _HEADER.size
                name = os.fsdecode(data[position : position + length].rstrip(b"\0"))
                position += length
                found.add(self._folders[number] / name)
        return found


def audit_events(report: Path) -> list[list[str]]:
    """Return the events that an audited process has reported."""
    return [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
