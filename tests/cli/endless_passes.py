"""The command line with forward passes that run until they are stopped: `python endless_passes.py ARGUMENTS`.

The file named by ENDLESS_STARTED is created when the first pass runs.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qwchat.cli.main import main
from qwchat.cpu import decoder
from qwchat.cpu.compiled_forward import load_entry_points
from qwchat.cpu.kernels.thread_team import CANCEL_WORD, EntryPoints

PATIENCE_SECONDS = 20.0


def endless_entry_points() -> EntryPoints:
    entry_points = load_entry_points()

    def lead(team: int, *arguments: int) -> None:
        Path(os.environ["ENDLESS_STARTED"]).touch()
        end = time.monotonic() + PATIENCE_SECONDS
        while not ctypes.c_int64.from_address(team + CANCEL_WORD).value and time.monotonic() < end:
            time.sleep(0.001)
        entry_points.lead(team, *arguments)

    return entry_points._replace(lead=lead)


if __name__ == "__main__":
    with mock.patch.object(decoder, "load_entry_points", endless_entry_points):
        main()
