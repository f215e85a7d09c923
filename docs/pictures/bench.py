"""The speed of a model beside the limits of the machine."""

from __future__ import annotations

from docs.pictures.checkpoint import NAME, make_converted
from docs.pictures.scene import PROMPT, SHELL, Scene
from docs.pictures.terminal import Terminal


def _act(terminal: Terminal) -> None:
    terminal.settle(PROMPT)
    terminal.press(f"qwchat bench {NAME}-q4\r")
    terminal.wait("decode")
    terminal.settle(PROMPT)
    terminal.mark()


SCENE = Scene("bench", "qwchat bench", _act, SHELL, rows=20, columns=96, prepare=make_converted)
