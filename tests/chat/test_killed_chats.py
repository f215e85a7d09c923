"""`kill -9` at random moments of chats: every session can be opened afterwards and holds all completed turns.

QWCHAT_TEST_KILLS sets the number of chats to kill.
"""

from __future__ import annotations

import io
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwchat.cli import app, chat
from qwchat.cli.main import main
from qwchat.conversation.session_store import SessionStore
from tests.chat import fakes
from tests.cli.fake_qwchat import dependencies
from tests.cli.runs import environment
from tests.clocks import PATIENCE_SECONDS

KILLS = int(os.environ.get("QWCHAT_TEST_KILLS", "20"))
QUESTIONS = 8
COMMANDS = ("/title A title", "/undo\n/redo", "/undo", "/system Be brief.", "/clear\n/redo", "/sessions")
TOKEN_SECONDS = 0.002


# Imported here once, so that the forked processes start with it.
PROGRAM = (app, chat, fakes)


@dataclass
class KilledChats:
    """Chats that were killed; by session name, the messages whose replies had been shown in full."""

    models: Path
    answered: dict[str, list[str]] = field(default_factory=dict)
    total: int = 0

    def chat(self, number: int) -> None:
        """Start chat `number` in a process of its own and kill it, at a moment drawn from a fixed seed."""
        random_source = random.Random(number)
        name = random_source.choice([f"shared {random_source.randrange(4)}", f"own {number}"])
        questions = [
            f"question {number} {index} {'word ' * random_source.randrange(9)}".strip() for index in range(QUESTIONS)
        ]
        at_write = random_source.randrange(1, 3 * QUESTIONS) if number % 2 else None
        turns, seconds = random_source.randrange(QUESTIONS), random_source.uniform(0, 25 * TOKEN_SECONDS)
        lines = "".join(f"{question}\n{random_source.choice(COMMANDS)}\n" for question in questions)
        arguments = ("chat", "--session", name, "--quiet", "--color", "never", "--ctx", "1000000")
        process, keys, shown = _start(self.models, arguments, at_write)
        os.write(keys, lines.encode())
        wanted = turns if at_write is None else QUESTIONS
        text = _read(shown, lambda text: text.count(b"\n") >= wanted)
        time.sleep(seconds if at_write is None else 0)
        os.kill(process, signal.SIGKILL)
        os.close(keys)
        text += _read(shown, lambda text: False)
        os.close(shown)
        status = os.waitpid(process, 0)[1]
        assert os.WIFSIGNALED(status), text.decode()
        over = text.decode().split("\n")[:-1]
        assert over == [f"echo: {question}" for question in questions[: len(over)]]
        self.answered.setdefault(name, []).extend(questions[: len(over)])
        self.total += len(over)


def _start(models: Path, arguments: tuple[str, ...], at_write: int | None) -> tuple[int, int, int]:
    """Start a chat that reads lines. Return its process and the pipes to write lines and to read replies.

    `at_write`: the process kills itself before, during or after this write to a session file.
    """
    stdin, keys = os.pipe()
    shown, stdout = os.pipe()
    process = os.fork()
    if process:
        os.close(stdin)
        os.close(stdout)
        return process, keys, shown
    try:
        os.setsid()
        for source, target in ((stdin, 0), (stdout, 1)):
            os.dup2(source, target)
        os.close(keys)
        os.close(shown)
        streams = (("stdin", 0, "r"), ("stdout", 1, "w"))
        for name, descriptor, mode in streams:
            setattr(sys, name, io.TextIOWrapper(os.fdopen(descriptor, mode + "b", closefd=False), encoding="utf-8"))
        os.environ.update(environment(models, token_seconds=TOKEN_SECONDS))
        if at_write is not None:
            _die_at(at_write)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        main(arguments, dependencies())
    finally:
        os._exit(3)


def _die_at(number: int) -> None:
    """Kill this process around write `number` of a session file."""
    real: Callable[..., int] = os.write
    calls = 0

    def deadly(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls < number:
            return real(descriptor, data)
        if number % 3:
            real(descriptor, data[: len(data) // (number % 3)])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.write = deadly


def _read(descriptor: int, enough: Callable[[bytes], Any]) -> bytes:
    """Read from a pipe until `enough` is satisfied or the other end is closed."""
    text = b""
    while not enough(text):
        assert select.select([descriptor], [], [], PATIENCE_SECONDS)[0], text.decode()
        data = os.read(descriptor, 65536)
        if not data:
            break
        text += data
    return text


@pytest.mark.timeout(120 + 5 * KILLS)
@pytest.mark.slow
def test_no_completed_turn_is_lost(tmp_path: Path) -> None:
    killed = KilledChats(tmp_path)
    store = SessionStore(tmp_path / "home" / "sessions")
    for number in range(KILLS):
        killed.chat(number)
        for entry in store.entries():
            assert entry.trouble == ""
            content = store.read(entry.id)
            assert content.invalid_lines == 0
            asked = {node.content: node.id for node in content.tree.nodes if node.role == "user"}
            for question in killed.answered.get(entry.name, []):
                replies = content.tree.children(asked[question])
                assert [reply.content for reply in replies] == [f"echo: {question}"]
        assert {name for name, questions in killed.answered.items() if questions} <= {
            entry.name for entry in store.entries()
        }
    assert killed.total > KILLS
