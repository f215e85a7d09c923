"""The menu of completions under the prompt of the chat."""

from __future__ import annotations

from docs.pictures.scene import CHAT, Scene
from docs.pictures.terminal import Terminal


def _act(terminal: Terminal) -> None:
    terminal.settle()
    terminal.press("How is q4 stored?", "\r")
    terminal.settle()
    terminal.type("/s")
    terminal.wait("/stats")
    terminal.rest(1)
    terminal.press("\t")
    terminal.rest(1)
    terminal.mark()


SCENE = Scene("completion", "Complete commands, values and files with Tab", _act, CHAT, rows=16)
