"""Check how a command ended."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.fuzz.case import Command
from tests.fuzz.server import MEMORY_BYTES, Outcome

LONGEST_LINE = 1500
# Control characters, and characters that reverse or hide text on a terminal.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_TRACES = (
    "Traceback (most recent call last)",
    "internal error:",
    "panicked at",
    "Fatal Python error",
    "Exception ignored",
    "Warning:",
)


def complaint(command: Command, outcome: Outcome, root: Path) -> str:
    """Return what is wrong with an outcome in one line, or ""."""
    errors = outcome.errors.decode(errors="replace")
    text = outcome.out.decode(errors="replace")
    checks = (
        outcome.trouble,
        f"ended by signal {-outcome.code}" if outcome.code < 0 else "",
        next((f"{trace!r} on standard error: {_excerpt(errors, trace)}" for trace in _TRACES if trace in errors), ""),
        "" if outcome.code in command.codes else f"exit code {outcome.code}: {_last(errors)}",
        "no reason on standard error" if outcome.code in (2, 3, 4, 5, 6) and not errors.strip() else "",
        f"takes {outcome.memory >> 20:,} MiB" if outcome.memory > MEMORY_BYTES else "",
        _long(errors, command.most_lines),
        _control(errors, "standard error"),
        _json(text) if command.json and outcome.code == 0 else "",
        f"another output: {text[:200]!r}" if command.text is not None and text != command.text else "",
        _file(root / command.harmless) if command.harmless else "",
    )
    return next(filter(None, checks), "")


def _excerpt(errors: str, trace: str) -> str:
    """Return the line that explains a failure: the last one of a traceback, or the one that has `trace`."""
    lines = [line for line in errors.splitlines() if line.strip()]
    if trace.startswith("Traceback"):
        return lines[-1][:300]
    return next(line for line in lines if trace in line)[:300]


def _last(errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing on standard error)"


def _long(errors: str, most: int) -> str:
    lines = errors.splitlines()
    if len(lines) > most:
        return f"{len(lines)} lines on standard error: {lines[0][:200]}"
    longest = max(map(len, lines), default=0)
    return f"a line of {longest:,} characters on standard error" if longest > LONGEST_LINE else ""


def _control(text: str, where: str) -> str:
    found = CONTROLS.search(text)
    return f"the control character {found[0]!r} in {where}" if found else ""


def _json(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        return f"standard output is not JSON ({error}): {text[:100]!r}"
    return _control(text, "JSON on standard output")


def _file(path: Path) -> str:
    return _control(path.read_text(encoding="utf-8"), path.name) if path.is_file() else ""
