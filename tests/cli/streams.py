"""Run qwchat with each standard stream a pipe or a terminal of its own, and read its output."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.cli.runs import FAKE, environment
from tests.clocks import PATIENCE_SECONDS
from tests.starter import Program, needs_fresh_interpreter, starter

Kind = Literal["pipe", "terminal"]
ROWS, COLUMNS = 40, 100


@dataclass
class ProgramOutput:
    """The exit code, and the bytes on standard output and standard error."""

    code: int
    out: bytes
    err: bytes


class _Stream:
    """One standard stream: the test's end and the program's end."""

    def __init__(self, kind: Kind, *, written_by_program: bool) -> None:
        if kind == "terminal":
            self.ours, self.theirs = pty.openpty()
            termios.tcsetwinsize(self.theirs, (ROWS, COLUMNS))
        elif written_by_program:
            self.ours, self.theirs = os.pipe()
        else:
            self.theirs, self.ours = os.pipe()
        self.data = b""
        self.open = True

    def read(self) -> None:
        """Read the available bytes; a terminal raises an error after its last writer has closed it."""
        try:
            piece = os.read(self.ours, 65536)
        except OSError:
            piece = b""
        self.data += piece
        self.open = bool(piece)


def run_on(
    *arguments: str,
    models: Path,
    stdin: Kind = "pipe",
    stdout: Kind = "pipe",
    stderr: Kind = "pipe",
    given: bytes = b"",
    variables: dict[str, str] | None = None,
    **script: Any,
) -> ProgramOutput:
    """Run `qwchat ARGUMENTS` with the scripted model on three separate streams of the given kinds.

    `given` is the content of standard input, which Ctrl-D ends on a terminal.
    """
    source = _Stream(stdin, written_by_program=False)
    out, err = (_Stream(kind, written_by_program=True) for kind in (stdout, stderr))
    everything = environment(models, **script) | (variables or {})
    streams = (source.theirs, out.theirs, err.theirs)
    process: subprocess.Popen[bytes] | Program
    if needs_fresh_interpreter(variables or {}):
        program = [sys.executable, str(FAKE), *arguments]
        process = subprocess.Popen(
            program, stdin=streams[0], stdout=streams[1], stderr=streams[2], env=everything, start_new_session=True
        )
    else:
        process = starter().start(arguments, everything, Path.cwd(), streams)
    for stream in (source, out, err):
        os.close(stream.theirs)
    os.write(source.ours, given + (b"\x04" if stdin == "terminal" else b""))
    if stdin == "pipe":
        os.close(source.ours)
    _collect(out, err)
    code = process.wait()
    for stream in (out, err) if stdin == "pipe" else (source, out, err):
        os.close(stream.ours)
    return ProgramOutput(code, out.data, err.data)


def _collect(*streams: _Stream) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while waiting := [stream for stream in streams if stream.open]:
        if time.monotonic() > end:
            raise AssertionError(f"the program did not end; it wrote {[stream.data for stream in streams]}")
        ready, _, _ = select.select([stream.ours for stream in waiting], [], [], 0.1)
        for stream in waiting:
            if stream.ours in ready:
                stream.read()
