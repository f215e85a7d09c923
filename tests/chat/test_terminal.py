"""The chat as the user sees it in a pseudo-terminal."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from tests.chat.pty import Terminal

BANNER = "qwchat: mini at 4.88 bits per weight, context 2,048 tokens; /help for help, Ctrl-D to leave"
SLOW_REPLY = " ".join(f"word{number}" for number in range(200))


def figures(prompt: str, rate: str, decode: str, used: int) -> str:
    """Return the line of figures after a reply of the scripted model."""
    return f"0.12 s to first token · {prompt} · prefill {rate} tok/s{decode} · context {used}/2,048"


def test_a_conversation_looks_like_this(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=["Good **day**.", "```py\nx = 1\n```\n"]) as terminal:
        terminal.prompt()
        terminal.type("hello there\r")
        terminal.prompt()
        terminal.type("one\ntwo\x1b\rthree\r")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0
        assert terminal.text.splitlines() == [
            BANNER,
            "> hello there",
            "Good day.",
            figures("3 prompt tokens", "6.0", " · decode 4.0 tok/s", 5),
            "",
            "> one",
            "  two",
            "  three",
            "── 1 · py",
            "x = 1",
            "──",
            "0.12 s to first token · 10 prompt tokens (5 new) · prefill 10.0/s · decode 20.0 tok/s · ctx 16/2,048",
            "",
            ">",
            "to continue: qwchat -c",
        ]
        assert b"Good \x1b[1mday\x1b[0m." in terminal.raw
        assert b"x = \x1b[36m1\x1b[0m" in terminal.raw


def test_ctrl_c_stops_the_reply_and_keeps_its_text(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=[SLOW_REPLY, "Fine."], token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word3")
        terminal.type("\x03")
        terminal.wait("stopped; /continue resumes the reply")
        terminal.prompt()
        assert "word199" not in terminal.text
        assert "^C" not in terminal.text
        partial_reply = next(line for line in terminal.text.splitlines() if line.startswith("word0"))
        terminal.type("go on\r")
        terminal.wait("Fine.")
        terminal.prompt()
        terminal.type(f"/save {tmp_path}/talk.json\r")
        terminal.wait("saved to")
        messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
        assert messages[1]["content"].startswith(partial_reply.rstrip())


@pytest.mark.slow
def test_ctrl_c_during_the_prefill_leaves_only_the_message(tmp_path: Path) -> None:
    long_question = "word " * 600
    with Terminal("chat", models=tmp_path, chunk_seconds=0.3, replies=["First.", "Second."]) as terminal:
        terminal.prompt()
        terminal.type(f"\x1b[200~{long_question}\x1b[201~")
        terminal.type("\r")
        terminal.wait("reading the prompt:")
        terminal.type("\x03")
        terminal.wait("stopped; no tokens generated, /retry tries again")
        terminal.prompt()
        assert "reading the prompt:" not in terminal.text
        terminal.type("/retry\r")
        terminal.wait("Second.")


def test_ctrl_c_at_the_prompt_only_hints(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("half a th\x03")
        terminal.wait("press Ctrl-D or type /quit to leave")
        terminal.prompt()
        terminal.type("still here\r")
        terminal.wait("echo: still here")


def test_keys_typed_during_a_reply_wait_for_the_prompt(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=[SLOW_REPLY[:60], "ok"], token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word2")
        terminal.type("my draft")
        screen = terminal.wait("> my draft")
        assert SLOW_REPLY[:60].rstrip() in screen


@pytest.mark.slow
def test_enter_and_ctrl_d_during_a_reply_take_effect_at_the_prompt(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[SLOW_REPLY[:60], "ok"], token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word2")
        terminal.type("next\r\x04")
        assert terminal.end() == 0
        assert terminal.text.splitlines() == ["> count", SLOW_REPLY[:60].rstrip(), "", "> next", "ok", "", ">"]


@pytest.mark.slow
def test_keys_typed_before_the_first_prompt_are_not_lost(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, load_seconds=1.0) as terminal:
        terminal.wait_until(lambda: not terminal.process.getecho(), "the terminal to stop echoing")
        terminal.type("early bird\r/set seed 5\r\x04")
        assert terminal.end() == 0
        assert terminal.text.splitlines() == [
            BANNER,
            "> early bird",
            "echo: early bird",
            figures("3 prompt tokens", "6.0", " · decode 8.0 tok/s", 6),
            "",
            "> /set seed 5",
            "seed 5",
            ">",
            "to continue: qwchat -c",
        ]


def test_commands_answer_on_the_screen(tmp_path: Path) -> None:
    with Terminal("chat", "-s", "Be brief.", models=tmp_path) as terminal:
        terminal.prompt()
        for command, answer in (
            ("/system", "Be brief."),
            ("/system Be kind.", "replaced the system prompt"),
            ("/set temp 0.5", "temp 0.5"),
            ("/set temp", "temp 0.5 (/set temp)"),
            ("/set temp 9", "qwchat: error: temp must be "),
            ("/set tmp 1", "qwchat: error: there is no setting 'tmp': did you mean temp?"),
            ("/set seed 5", "seed 5"),
            ("/hlep", "qwchat: error: there is no command /hlep: did you mean /help?"),
            ("/retry", "qwchat: error: there is no message yet"),
            ("/save", "qwchat: error: /save needs a file name, for example /save talk.md"),
            ("/help", "new line"),
            ("//help", "echo: /help"),
            ("/usr/bin is a message", "echo: /usr/bin is a message"),
            ("/clear", "cleared the conversation; /redo restores it"),
            (f"/save {tmp_path}/x.md", "qwchat: error: the conversation is empty, so there is nothing to save"),
        ):
            terminal.type(command + "\r")
            terminal.wait(answer)
            terminal.prompt()
        assert "seed 5" in terminal.text
        terminal.type("/quit\r")
        assert terminal.end() == 0


def test_tab_completes_commands_and_settings(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("/he\t")
        terminal.wait("> /help")
        terminal.type("\x15/set presence\t")
        terminal.wait("> /set presence-penalty")


def test_history_is_kept_and_private(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("remember me\r")
        terminal.wait("echo: remember me")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0
    history = tmp_path / "home" / "qwchat" / "history.jsonl"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with Terminal("chat", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("\x1b[A")
        terminal.wait("> remember me")


def test_escape_sequences_in_a_reply_are_shown_not_executed(tmp_path: Path) -> None:
    with Terminal("-p", "hi", models=tmp_path, replies=["\x1b]0;title\x07 \x9b31m \x1b[2J gone\r?"]) as terminal:
        assert terminal.end() == 0
        assert terminal.text.splitlines()[0] == "␛]0;title␇ <9B>31m ␛[2J gone␍?"


def test_no_color_keeps_emphasis_only(tmp_path: Path) -> None:
    with Terminal("-p", "hi", models=tmp_path, variables={"NO_COLOR": "1"}, replies=["# Head\n`code`\n"]) as terminal:
        assert terminal.end() == 0
        assert b"\x1b[1;4mHead\x1b[0m\r\n" in terminal.raw
        assert not re.search(rb"\x1b\[[\d;]*[39]\dm", terminal.raw)
        assert terminal.text.splitlines()[:2] == ["Head", "`code`"]


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, variables={"TERM": "dumb"}, replies=["# **One**"]) as terminal:
        terminal.wait_until(lambda: terminal.text.endswith(">"), "the prompt")
        terminal.type("hello\r")
        terminal.wait("context 4/2,048\n\n>")
        terminal.type("\x03")
        terminal.wait("press Ctrl-D or type /quit to leave")
        terminal.type("/quit\r")
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.raw
        assert "# **One**" in terminal.text.splitlines()


def test_bare_qwchat_on_a_terminal_is_a_chat(tmp_path: Path) -> None:
    with Terminal("--quiet", models=tmp_path) as terminal:
        assert terminal.prompt() == ">"
        terminal.type("hello\r")
        terminal.wait("echo: hello")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_prompt_for_the_question_appears_with_dash(tmp_path: Path) -> None:
    with Terminal("-q", "-p", "-", models=tmp_path) as terminal:
        terminal.wait("type the question, then Ctrl-D on a line of its own")
        terminal.type("what now?\n\x04")
        assert terminal.end() == 0
        assert terminal.text.splitlines()[-1] == "echo: what now?"


@pytest.mark.slow
def test_piped_input_is_sent_first_and_the_terminal_stays_usable(tmp_path: Path) -> None:
    from tests.cli.runs import FAKE

    command = ["/bin/sh", "-c", f"printf 'a diff\\n' | exec '{__import__('sys').executable}' '{FAKE}' chat -q"]
    with Terminal(models=tmp_path, command=command) as terminal:
        terminal.wait("echo: a diff")
        terminal.prompt()
        terminal.type("and this\r")
        terminal.wait("echo: and this")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_file_goes_before_the_first_question(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("some notes\n")
    with Terminal("chat", "-q", "-f", str(tmp_path / "notes"), models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("what?\r")
        terminal.wait(f"echo: File {tmp_path}/notes:\n\n── 1\nsome notes\n──\n\nwhat?")
        terminal.prompt()
        terminal.type("again\r")
        terminal.wait("echo: again")


def test_a_prompt_that_does_not_fit_is_reported_and_the_chat_continues(tmp_path: Path) -> None:
    with Terminal("chat", "--ctx", "6", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("one two three four five six\r")
        terminal.wait(
            "qwchat: error: the prompt has 7 tokens and the context holds 6, including one for the reply: shorten\n"
            "the message, or /set ctx N allows a longer context (up to 4,096 tokens with this model)"
        )
        terminal.wait_until(lambda: terminal.text.endswith("\n> one two three four five six"), "the draft")
        terminal.type("\x15one\r")
        terminal.wait("echo: one")


def test_plain_rewrites_no_line_and_uses_no_colour(tmp_path: Path) -> None:
    variables = {"QWCHAT_PLAIN": "on", "FORCE_COLOR": "1"}
    with Terminal("chat", models=tmp_path, variables=variables, replies=["# Title\n\n**bold** `code`"]) as terminal:
        terminal.wait("Ctrl-D to leave", ">")
        terminal.type("hello\r")
        terminal.wait("# Title", "**bold** `code`", "to first token")
        terminal.type("/set temp 9\r")
        terminal.wait("qwchat: error: temp must be from 0 to 5, not 9")
        terminal.type("/set render\r")
        terminal.wait("render auto (built in)")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw


def test_settings_of_the_screen_and_of_the_engine_in_a_chat(tmp_path: Path) -> None:
    own = {"QWCHAT_CONFIG": str(tmp_path / "own")}
    with Terminal("chat", "--as", "poet", models=tmp_path, variables=own) as terminal:
        terminal.wait("qwchat: error: there is no persona 'poet': ")
        assert terminal.end() == 2
    persona = tmp_path / "own" / "personas" / "poet.toml"
    persona.parent.mkdir(parents=True)
    persona.write_text("system = 'A poet of {place}.'\ntemp = 1.5\n")
    arguments = ("chat", "--as", "poet", "--var", "place=Rome", "--render", "markdown")
    with Terminal(*arguments, models=tmp_path, variables=own, replies=["**one**", "**two**"]) as terminal:
        terminal.prompt()
        for command, answers in (
            ("/system", ["A poet of Rome."]),
            ("/set temp", ["temp 1.5 (persona poet)"]),
            ("hello", ["one", "seed "]),
            ("/set rend\t pl\t", ["render plain"]),
            ("again", ["**two**"]),
            ("/set ctx 100", ["ctx 100"]),
            ("/set stats off", ["stats off"]),
            ("/set bell 5", ["bell 5"]),
            ("/as none", ["removed the persona; 8 tokens will be evaluated again"]),
        ):
            terminal.type(command + "\r")
            terminal.wait(*answers)
            terminal.prompt()
