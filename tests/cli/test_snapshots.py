"""Sessions continue from saved KV caches, in the chat and in single replies, with the scripted model."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.chat.pty import Terminal
from tests.cli.runs import call

ON = ("--snapshot", "on")


def ask(text: str, models: Path, *arguments: str, **script: object) -> tuple[int, str]:
    """Return the number of cached tokens, and the notices."""
    ran = call("-p", text, "--json", *arguments, models=models, **script)
    assert ran.returncode == 0
    return json.loads(ran.stdout)["tokens"]["cached"], ran.stderr.decode()


def snapshots(models: Path) -> list[Path]:
    return sorted((models / "home" / "sessions").glob("*/kv.snapshot"))


def test_single_replies_of_a_session(tmp_path: Path) -> None:
    session = ("--session", "sums", *ON)
    assert ask("one two", tmp_path, *session) == (0, "")
    [path] = snapshots(tmp_path)
    read = int(path.read_text())
    assert ask("three", tmp_path, *session) == (read, "")
    assert int(path.read_text()) > read
    assert ask("four", tmp_path, "--session", "sums", "--snapshot", "off") == (0, "")
    assert snapshots(tmp_path) == []


def test_auto_saves_a_snapshot_if_evaluation_takes_long(tmp_path: Path) -> None:
    session = ("--session", "sums")
    ask("one", tmp_path, *session)
    assert snapshots(tmp_path) == []
    ask("two", tmp_path, *session, reevaluation_seconds=2)
    assert len(snapshots(tmp_path)) == 1
    assert ask("three", tmp_path, *session)[0] > 0
    assert snapshots(tmp_path) == []


def test_a_chat_killed_after_a_long_prefill_continues_from_its_snapshot(tmp_path: Path) -> None:
    with Terminal("chat", "--session", "sums", models=tmp_path, reevaluation_seconds=60) as terminal:
        terminal.prompt()
        terminal.type("one two three\r")
        terminal.wait("echo: one two three", "to first token")
        terminal.prompt()
        [path] = snapshots(tmp_path)
        read = int(path.read_text())
        terminal.process.kill(signal.SIGKILL)
    assert ask("four", tmp_path, "--session", "sums")[0] == read > 0


def test_no_session_no_snapshot(tmp_path: Path) -> None:
    assert ask("one", tmp_path, *ON) == (0, "")
    assert ask("one", tmp_path, "--session", "sums", "--no-save", *ON) == (0, "")
    assert snapshots(tmp_path) == []


def test_no_save_uses_a_snapshot_and_does_not_change_it(tmp_path: Path) -> None:
    ask("one", tmp_path, "--session", "sums", *ON)
    [path] = snapshots(tmp_path)
    before = path.read_text()
    assert ask("two", tmp_path, "--session", "sums", "--no-save", *ON)[0] == int(before)
    assert path.read_text() == before


def test_a_damaged_snapshot_is_reported_and_replaced(tmp_path: Path) -> None:
    session = ("--session", "sums", *ON)
    ask("one", tmp_path, *session)
    [path] = snapshots(tmp_path)
    path.write_text("nonsense")
    told = f"qwchat: {path} is damaged: the conversation will be evaluated again\n"
    assert ask("two", tmp_path, *session) == (0, told)
    assert ask("three", tmp_path, *session)[0] > 0


def test_the_chat_changes_between_sessions(tmp_path: Path) -> None:
    ask("sums are told in many words", tmp_path, "--session", "sums", *ON)
    [first] = snapshots(tmp_path)
    read = int(first.read_text())
    with Terminal("chat", *ON, models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("seas\r")
        terminal.wait("echo: seas")
        terminal.prompt()
        terminal.type("/resume sums\r")
        terminal.wait("resumed")
        terminal.prompt()
        assert len(snapshots(tmp_path)) == 2
        terminal.type("more\r")
        shown = terminal.wait("echo: more", " new)")
        total, new = re.findall(r"(\d+) prompt tokens \((\d+) new\)", shown)[-1]
        assert int(total) - int(new) == read
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0
    assert int(first.read_text()) > read


def test_a_fork_keeps_the_cached_tokens(tmp_path: Path) -> None:
    ran = call("chat", "--session", "sums", *ON, models=tmp_path, stdin=b"one two three\n/fork two\n/new\n")
    assert ran.returncode == 0
    assert [path.read_text() for path in snapshots(tmp_path)] == ["8", "8"]
    assert ask("four", tmp_path, "--session", "two", *ON)[0] == 8
