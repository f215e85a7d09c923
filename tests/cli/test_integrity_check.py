"""Replies and chats when damage is found while they run, and when logits are not finite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chat.pty import Terminal
from tests.cli.runs import run
from tests.cli.streams import run_on
from tests.cli.test_streams import screen_of


@pytest.mark.slow
def test_a_finished_reply_waits_for_the_check(tmp_path: Path) -> None:
    script = {"damaged": "t", "checking_seconds": 2.0, "replies": ["Fine."]}
    error = (
        "/models/tiny-q8: tensor t is damaged (its bytes differ): convert it again with qwchat convert SOURCE "
        "/models/tiny-q8 --preset q8 --force, where SOURCE is the folder of the checkpoint tiny"
    )
    seen = run_on("-p", "hi", models=tmp_path, stderr="terminal", **script)
    assert (seen.code, seen.out) == (3, b"Fine.\n")
    assert b"checking the model's files" in seen.err
    shown = "".join(screen_of(seen.err)).replace(" ", "")  # The terminal may wrap the line anywhere.
    assert shown == f"qwchat: error: {error}".replace(" ", ""), "progress is cleared"
    seen = run_on("-q", "-p", "hi", "--json", models=tmp_path, stderr="terminal", **script)
    assert (seen.code, json.loads(seen.out)["text"], json.loads(seen.out)["error"]) == (3, "Fine.", error)
    assert b"checking" not in seen.err
    seen = run_on("-p", "hi", models=tmp_path, stderr="terminal", **script | {"checking_seconds": 0.5})
    assert seen.code == 3
    assert b"checking" not in seen.err, "a check of less than a second is not reported"
    seen = run_on("-p", "hi", models=tmp_path, stderr="terminal", **script | {"damaged": None})
    assert (seen.code, seen.out) == (0, b"Fine.\n")


def test_damage_ends_a_running_reply(tmp_path: Path) -> None:
    script = {"damaged": "t", "checking_seconds": 0.2, "replies": ["word " * 500], "token_seconds": 0.02}
    result = run("-p", "hi", "--jsonl", "--session", "s", models=tmp_path, **script)
    *events, last = [json.loads(line) for line in result.stdout.splitlines()]
    text = "".join(event["text"] for event in events if event["event"] == "text")
    assert (result.returncode, last["event"], last["text"]) == (3, "error", text)
    assert 0 < len(text) < 2500
    assert len(result.stderr.splitlines()) == 1
    shown = run("sessions", "show", "s", models=tmp_path)
    assert text.strip() in shown.stdout.decode(), "the session keeps the partial reply"


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--jsonl",)])
def test_non_finite_logits_give_code_3(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run("-p", "hi", *arguments, models=tmp_path, replies=["one two three four"], failing=True)
    assert result.returncode == 3
    assert result.stderr == b"qwchat: error: the model produced NaN at token 4: convert it again\n"
    if arguments:
        last = json.loads(result.stdout.splitlines()[-1])
        assert (last["text"], last["finish_reason"], last["exit_code"]) == ("one two three", "error", 3)


def test_a_chat_continues_after_non_finite_logits_and_ends_with_code_3(tmp_path: Path) -> None:
    lines = b"a b\n/set seed 1\n"
    result = run("chat", "-q", models=tmp_path, stdin=lines, replies=["one two three four"], failing=True)
    assert result.returncode == 3
    assert result.stderr.splitlines() == [
        b"qwchat: error: the model produced NaN at token 4: convert it again",
        b"seed 1",
    ]


@pytest.mark.slow
def test_damage_ends_a_chat_and_its_session_keeps_every_turn(tmp_path: Path) -> None:
    script = {"damaged": "t", "checking_seconds": 1.5, "replies": ["first", "word " * 500], "token_seconds": 0.02}
    lines = b"/title kept\nHello\nAgain\nnever asked\n"
    result = run("chat", "-q", models=tmp_path, stdin=lines, **script)
    assert result.returncode == 3
    assert result.stderr.decode().splitlines()[-1].startswith("qwchat: error: /models/tiny-q8: tensor t is damaged ")
    shown = run("sessions", "show", "kept", models=tmp_path).stdout.decode()
    assert all(said in shown for said in ("Hello", "first", "Again", "word word"))
    assert "never asked" not in shown


def test_damage_ends_a_chat_on_a_terminal(tmp_path: Path) -> None:
    script = {"damaged": "t", "checking_seconds": 0.5, "replies": ["word " * 500], "token_seconds": 0.02}
    with Terminal("chat", "-q", models=tmp_path, **script) as terminal:
        terminal.prompt()
        terminal.type("Hello\r")
        terminal.wait("tensor t is damaged")
        assert terminal.end() == 3
        assert "word" in terminal.text


def test_leaving_a_chat_does_not_wait_for_the_check(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, checking_seconds=600.0, replies=["Fine."]) as terminal:
        terminal.prompt()
        terminal.type("Hello\r")
        terminal.wait("Fine.")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.parametrize("arguments", [(), ("--json",)])
@pytest.mark.slow
def test_ctrl_c_ends_the_wait(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    script = {"checking_seconds": 600.0, "replies": ["Fine."]}
    with Terminal("-p", "hi", *arguments, models=tmp_path, **script) as terminal:
        terminal.wait("checking the model's files")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "qwchat: interrupted" in terminal.text
