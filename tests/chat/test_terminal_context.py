"""A full context, as the user sees it in a pseudo-terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chat.pty import Terminal
from tests.cli.runs import call, run

TOO_LONG = " ".join("e" * 12)


def say(terminal: Terminal, *messages: str) -> None:
    """Send messages, each after the reply to the previous one."""
    for message in messages:
        terminal.prompt()
        terminal.type(message + "\r")
        terminal.wait(f"> {message}")
        terminal.prompt()


def on_one_line(terminal: Terminal) -> str:
    """Return the text on one line, as on a terminal that is wide enough."""
    return terminal.text.replace("\n", " ")


def test_the_toolbar_shows_how_full_the_context_is(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=["one two three four"]) as terminal:
        terminal.wait_until(lambda: terminal.toolbar.endswith("ctx 0/2k"), "the meter")
        say(terminal, "a")
        terminal.wait_until(lambda: terminal.toolbar.endswith("ctx 7/2k"), "the meter")
        say(terminal, "/system Be brief.")
        terminal.wait_until(lambda: terminal.toolbar.endswith("ctx 10/2k"), "the meter")
        terminal.type("/context\r")
        terminal.wait(" 10 of 2,048 tokens used\n  2 system prompt\n256 reserved for the reply")


@pytest.mark.slow
def test_input_typed_before_the_overflow_question_does_not_answer_it(tmp_path: Path) -> None:
    script = {"replies": ["one two three four"], "token_seconds": 0.2}
    with Terminal("chat", "-q", "--ctx", "40", models=tmp_path, **script) as terminal:
        say(terminal, *"abc")
        terminal.type("d\r")
        terminal.wait("> d\none")
        terminal.type(f"{TOO_LONG}\rdo\r")
        terminal.wait("d/s/e:")
        terminal.type("d\r")
        terminal.wait("── dropped the ", "\n> do\none two three four")
        assert terminal.text.count("d/s/e:") == 1


def test_the_user_decides_what_is_dropped(tmp_path: Path) -> None:
    with Terminal("chat", "-q", "--ctx", "40", models=tmp_path, replies=["one two three four"]) as terminal:
        say(terminal, *"abcd")
        terminal.type(TOO_LONG + "\r")
        terminal.wait("d/s/e:")
        terminal.type("e\r")
        terminal.wait_until(lambda: terminal.text.endswith(f"d/s/e: e\n> {TOO_LONG}"), "the draft")
        terminal.type("\r")
        terminal.wait_until(lambda: terminal.text.count("d/s/e:") == 2, "the question")
        terminal.type("maybe\r")
        terminal.wait_until(lambda: terminal.text.count("d/s/e:") == 3, "the question again")
        terminal.type("d\r")
        terminal.wait("── dropped the 2 oldest exchanges; context 27/40 ──\none two three four")
        terminal.prompt()
        assert (
            "the prompt has 41 tokens and the context holds 40: [d]rop the 2 oldest exchanges, [s]ummarise, "
            "[e]dit the message"
        ) in on_one_line(terminal)
        terminal.type("\x1b[A")
        terminal.wait_until(lambda: terminal.text.endswith(f"\n> {TOO_LONG}"), "the message, not the answer")
        terminal.type("\x15/context\r")
        terminal.wait(" 4 dropped turns (/drop none sends them again)")
        say(terminal, "/drop none")
        terminal.wait("all turns are sent again; context 46/40")


def test_a_full_context_ends_a_reply_and_continue_resumes_it(tmp_path: Path) -> None:
    long = " ".join(f"w{number}" for number in range(30))
    script = {"replies": ["one two three four", "one two three four", long]}
    with Terminal("chat", "--ctx", "40", "--overflow", "drop", models=tmp_path, **script) as terminal:
        say(terminal, "a", "b", "count")
        cut = (
            "the reply was cut off: the context of 40 tokens is full; "
            "/drop or /summarise frees tokens, /continue resumes it"
        )
        assert cut in on_one_line(terminal)
        assert "w29" not in terminal.text
        terminal.type("/continue\r")
        terminal.wait("── dropped the 2 oldest exchanges; context 27/40 ──")
        terminal.wait("w29")


def test_a_resumed_session_says_what_is_not_sent(tmp_path: Path) -> None:
    arguments = ("--session", "talk", "--ctx", "40")
    for name in "abcd":
        assert call("-p", name, *arguments, models=tmp_path, replies=["one two three four"]).returncode == 0
    refused = call("-p", TOO_LONG, *arguments, models=tmp_path)
    assert refused.returncode == 4
    assert refused.stdout == b""
    assert refused.stderr.decode() == (
        "qwchat: error: the conversation with this message has 41 tokens and the context holds 40, including one for "
        "the reply: use --overflow drop or summarise, or --ctx N allows a longer context (up to 4,096 tokens "
        "with this model)\n"
    )
    dropped = call("-q", "-p", TOO_LONG, *arguments, "--overflow", "drop", "--json", models=tmp_path, replies=["Fine."])
    assert dropped.stderr.decode() == "── dropped the 2 oldest exchanges; context 27/40 ──\n"
    answer = json.loads(dropped.stdout)
    assert (answer["text"], answer["truncated"], answer["finish_reason"]) == ("Fine.", True, "stop")
    assert answer["left_out"] == {"dropped": 4, "summarised": 0}
    with Terminal("chat", *arguments, models=tmp_path) as terminal:
        terminal.prompt()
        assert (
            "qwchat: 4 old turns are not sent: in a chat, /drop none sends all turns again"
            in terminal.text.splitlines()
        )
        terminal.wait_until(lambda: terminal.toolbar.endswith("ctx 29/40"), "the meter")


def test_a_summary_is_an_event_for_programs(tmp_path: Path) -> None:
    arguments = ("--session", "talk", "--ctx", "200")
    reply = " ".join("r" * 30)
    for name in "abcd":
        call("-p", name, *arguments, models=tmp_path, replies=[reply])
    script = {"replies": ["Letters came.", "Fine."]}
    result = call("-p", " ".join("e" * 60), *arguments, "--overflow", "summarise", "--jsonl", models=tmp_path, **script)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "room", "prefill", "text", "done"]
    assert events[1] == {
        "event": "room",
        "how": "summarised",
        "exchanges": 3,
        "turns": 6,
        "tokens": 102,
        "context": 200,
    }
    assert (events[-1]["text"], events[-1]["left_out"]) == ("Fine.", {"dropped": 0, "summarised": 6})
    assert result.stderr.decode().splitlines() == [
        "qwchat: summarising the 3 oldest exchanges",
        "── summarised the 3 oldest exchanges; context 102/200 ──",
    ]


def test_summarise_by_hand_shows_the_summary(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=["one two", "three four", "Short."]) as terminal:
        say(terminal, "a", "b", "/summarise")
        assert terminal.text.splitlines()[-5:] == [
            "> /summarise",
            "summary that replaces the oldest exchange:",
            "Short.",
            "",
            ">",
        ]
        terminal.type("/drop 1\r")
        terminal.wait("there are no exchanges before the last one: /clear removes that one too")


def test_ctrl_c_and_ctrl_d_go_back_to_the_message(tmp_path: Path) -> None:
    with Terminal("chat", "-q", "--ctx", "40", models=tmp_path, replies=["one two three four"]) as terminal:
        say(terminal, *"abcd")
        for number, key in enumerate(("\x03", "\x04"), 1):
            terminal.type((TOO_LONG if number == 1 else "") + "\r")
            terminal.wait_until(lambda times=number: terminal.text.count("d/s/e:") == times, "the question")
            terminal.type(key)
            terminal.wait_until(lambda: terminal.text.endswith(f"\n> {TOO_LONG}"), "the draft")
        terminal.type("\x15e\r")
        terminal.wait("> e\none two three four")


def test_a_dumb_terminal_asks_too(tmp_path: Path) -> None:
    arguments = ("chat", "-q", "--ctx", "40")
    variables = {"TERM": "dumb"}
    with Terminal(*arguments, models=tmp_path, variables=variables, replies=["one two three four"]) as terminal:
        terminal.wait_until(lambda: terminal.text.endswith(">"), "the prompt")
        for number, name in enumerate("abcd", 1):
            terminal.type(name + "\r")
            terminal.wait_until(lambda times=number: terminal.text.count("four\n\n>") == times, "the prompt")
        terminal.type(TOO_LONG + "\r")
        terminal.wait("d/s/e:")
        terminal.type("d\r")
        terminal.wait("── dropped the 2 oldest exchanges; context 27/40 ──\none two three four")
        assert b"\x1b" not in terminal.raw


def test_a_scripted_chat_asks_no_questions(tmp_path: Path) -> None:
    lines = "\n".join([*"abcd", TOO_LONG, "@x.py", "/quit"]) + "\n"
    result = run("chat", "-q", "--ctx", "40", models=tmp_path, stdin=lines.encode(), replies=["one two three four"])
    assert result.returncode == 0
    assert result.stderr.decode().startswith("qwchat: error: the conversation with this message has 41 tokens")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == b"one two three four\n" * 5
