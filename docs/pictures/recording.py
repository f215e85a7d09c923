"""A short chat as it happens: a table and code as they are written, and the completion menu."""

from __future__ import annotations

from docs.pictures.scene import PROMPT, SHELL, Scene
from docs.pictures.terminal import Terminal


def _ask(terminal: Terminal, question: str) -> None:
    terminal.type(question)
    terminal.rest(0.5)
    with terminal.slowed():
        terminal.press("\r")
        terminal.settle()
    terminal.mark()
    terminal.rest(1.2)


def _act(terminal: Terminal) -> None:
    terminal.settle(PROMPT)
    terminal.type("qwchat")
    terminal.rest(0.4)
    terminal.press("\r")
    terminal.settle()
    _ask(terminal, "Which formats are there?")
    terminal.type("/set m")
    terminal.wait("max-tokens")
    terminal.rest(1.5)
    terminal.press("\t")
    terminal.rest(0.7)
    terminal.press("\t")
    terminal.rest(0.7)
    terminal.type(" 300")
    terminal.rest(1)
    terminal.press("\r")
    terminal.settle()
    terminal.rest(1.2)
    _ask(terminal, "How do I convert a model?")


SCENE = Scene("recording", "qwchat", _act, SHELL, rows=27, moving=True)
