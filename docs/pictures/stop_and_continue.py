"""A reply that is stopped with a key, and continued with a command."""

from __future__ import annotations

from docs.pictures.scene import CHAT, Scene
from docs.pictures.terminal import Terminal


def _act(terminal: Terminal) -> None:
    terminal.settle()
    terminal.press("What can you do?")
    with terminal.slowed():
        terminal.press("\r")
        terminal.wait(r"I can:")
        terminal.press("\x03")
        terminal.settle()
    terminal.press("/continue", "\r")
    terminal.settle()
    terminal.mark()


SCENE = Scene(
    "stop-and-continue", "Stop a reply with Ctrl-C, continue it with /continue", _act, CHAT, rows=27, replies=False
)
