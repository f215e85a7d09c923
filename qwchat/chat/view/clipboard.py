"""Copy text to the terminal's clipboard with OSC 52, which also works through ssh."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from typing import TextIO

MAX_BYTES = 74_994  # 100,000 characters of base64: the limit of the strictest common terminals.
_SCREEN_SEQUENCE_BYTES = 512  # GNU screen passes on sequences of at most 768 bytes.


def copy(out: TextIO, text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Ask the terminal `out` to put `text` into its clipboard. The terminal does not report whether it did."""
    coded = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    sequence = f"\x1b]52;c;{coded}\x07"
    if "TMUX" not in environment and environment.get("TERM", "").startswith("screen"):
        sequence = "".join(f"\x1bP{piece}\x1b\\" for piece in _pieces(sequence))
    out.write(sequence)
    out.flush()


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _SCREEN_SEQUENCE_BYTES):
        yield text[start : start + _SCREEN_SEQUENCE_BYTES]


def copy_advice(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return why the terminal may refuse `text`, or "" if there is no known reason."""
    if "TMUX" in environment:
        return "in tmux this needs: tmux set -s set-clipboard on"
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        return f"some terminals accept at most {MAX_BYTES // 1000} kB"
    return ""
