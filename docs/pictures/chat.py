"""A conversation with the embedded model: Markdown with a list, a table and code, and the figures of each reply."""

from __future__ import annotations

from docs.pictures.scene import CHAT, Scene
from docs.pictures.terminal import Terminal

QUESTIONS = ("What can you do?", "Which formats are there?", "What is 7 + 8?")


def _act(terminal: Terminal) -> None:
    terminal.settle()
    for question in QUESTIONS:
        terminal.press(question, "\r")
        terminal.settle()
    terminal.mark()


SCENE = Scene("chat", "qwchat chat", _act, CHAT, rows=36)
