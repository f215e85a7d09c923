"""A conversion: what it would write, and its progress."""

from __future__ import annotations

from docs.pictures.checkpoint import NAME, make
from docs.pictures.scene import PROMPT, SHELL, Scene
from docs.pictures.terminal import Terminal


def _act(terminal: Terminal) -> None:
    terminal.settle(PROMPT)
    terminal.press(f"qwchat convert {NAME} --dry-run\r")
    terminal.settle(PROMPT)
    terminal.press(f"qwchat convert {NAME}\r")
    terminal.wait(r" (5[5-9]|6\d)% ")
    terminal.mark()
    terminal.press("\x03")
    terminal.settle(PROMPT)


SCENE = Scene("convert", "qwchat convert", _act, SHELL, rows=20, columns=88, prepare=make)
