"""Processes of the engines in the comparison: requests, answers and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.cells import Contender
from benchmarks.real_shapes import resident_sets

TICKS = os.sysconf("SC_CLK_TCK")
IDLE, WAITING = 3, 4  # fields of /proc/stat


class EngineError(RuntimeError):
    """An engine refused a request, or its process ended."""


def busy_seconds() -> float:
    """Return the CPU seconds that this machine has been busy, including time that its host gave to others."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[IDLE] - fields[WAITING]) / TICKS


class Process:
    """A `benchmarks.worker` with one context for each contender that asked for one.

    `python` runs it: the engine's library may live in an environment of its own.
    """

    def __init__(
        self, engine: str, path: Path, *, threads: int, repack: bool, python: Path = Path(sys.executable)
    ) -> None:
        command = [str(python), "-m", "benchmarks.worker", engine, str(path), "--threads", str(threads)]
        if repack:
            command.append("--repack")
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the answer. Raises EngineError."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        try:
            self._popen.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            raise EngineError(f"{op}: the process has ended") from None
        line = self._popen.stdout.readline()
        if not line:
            raise EngineError(f"{op}: the process ended with {self._popen.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the process and its threads."""
        fields = Path(f"/proc/{self._popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> dict[str, int]:
        """Return the bytes in memory: `anonymous`, and `resident`, which includes pages of mapped files."""
        sets = resident_sets(self._popen.pid)
        return {"anonymous": sets["RssAnon"] + sets["RssShmem"], "resident": sum(sets.values())}

    def end(self) -> None:
        """Close stdin and wait for the process to end."""
        self._popen.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Pool:
    """Running processes, shared by contenders with the same worker key."""

    def __init__(self, start: Callable[[Contender], Process]) -> None:
        self._start = start
        self._live: dict[tuple[str, str, bool], Process] = {}

    def process_of(self, contender: Contender) -> Process:
        """Return the process of a contender; start it if necessary."""
        if contender.worker not in self._live:
            self._live[contender.worker] = self._start(contender)
        return self._live[contender.worker]

    def keep(self, contenders: Iterable[Contender]) -> None:
        """End the processes that `contenders` do not need, and close the contexts of the others."""
        needed = {contender.worker for contender in contenders}
        for key in list(self._live):
            try:
                if key in needed:
                    self._live[key].ask("close")
                    continue
            except EngineError:
                pass  # The process has ended; the next request starts another.
            self._live.pop(key).end()


def open_context(process: Process, contender: Contender, size: int) -> float:
    """Open a context of `size` positions for a contender and return the seconds. Raises EngineError."""
    answer = process.ask("open", key=contender.label, setting=asdict(contender.setting), size=size)
    return float(answer["seconds"])
