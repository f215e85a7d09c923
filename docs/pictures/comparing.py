"""Comparison of what a picture shows with another run: words and looks count, figures and gaps do not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from docs.pictures.rows import Row
from quant.native.simd_level import LEVELS

_FIGURE = re.compile(r"\d[\d,.]*")
_UNIT = re.compile(r"# ?(ms|s|min|h|[kMGT]?B|[kMG]?B/s|tok/s|/s)(?![\w/])")
_PROMPT, _BELOW = re.compile(r"\[bold\]> "), re.compile(r"\[faint\](stopped|# )")
_LEVEL = re.compile(rf"\b({'|'.join(LEVELS)})\b")
_FIGURES = re.compile(r"^\[faint\]#( to first token)? · .*")  # Wide numbers leave less space for words.
_LINE = re.compile(r"[─━╸╺]+")


def lines(moments: Sequence[tuple[Row, ...]], home: Path, *, replies: bool = True) -> list[str]:
    """Return the rows of a run as lines in which only words and looks are left.

    Args:
        moments: screens of the run.
        home: folder in which it was.
        replies: False leaves out what stands between a prompt and the notice or the figures below the reply.
    """
    found = []
    for moment in moments:
        in_reply = False
        for line in (_normal(row, home) for row in moment if row):
            in_reply = in_reply and not _BELOW.match(line)
            if not in_reply:
                found.append(line)
            in_reply = not replies and (in_reply or _PROMPT.match(line) is not None)
    return found


def differences(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return the lines that differ, as a diff; empty if they are equal."""
    return list(difflib.unified_diff(before, after, "picture", "run", n=1, lineterm=""))


def _normal(row: Row, home: Path) -> str:
    """Return a row with its changes of style written out; figures with their units, gaps and lines are all alike."""
    parts = []
    for run in row:
        text = _LINE.sub(
            "─",
            _UNIT.sub("#", _FIGURE.sub("#", _LEVEL.sub("SIMD", " ".join(run.text.split())).replace(str(home), "~"))),
        )
        look = " ".join(filter(None, (run.style.colour, run.style.background, run.style.marks)))
        part = f"[{look}]{text}"
        if not parts or parts[-1] != part:
            parts.append(part)
    return _FIGURES.sub("[faint]figures of a reply", " ".join(parts))
