"""Keys pressed during a reply or a prefill, in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.chat.pty import Terminal
from tests.cli.runs import FAKE
from tests.clocks import count_sleeps, wait_for

WORDS = " ".join(f"word{number}" for number in range(200))
SHORT = " ".join(f"word{number}" for number in range(14))


@pytest.mark.parametrize("key", ["\x1b", "\x03"])
def test_escape_and_ctrl_c_stop_a_reply(key: str, tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[WORDS, "Fine."], token_seconds=0.03) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word3")
        terminal.type(key)
        terminal.wait("stopped; /continue resumes the reply")
        terminal.prompt()
        terminal.type("go on\r")
        terminal.wait("> go on\nFine.\n\n>")


@pytest.mark.parametrize("key", ["\x1b", "\x03"])
@pytest.mark.slow
def test_escape_and_ctrl_c_stop_a_prefill(key: str, tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, chunk_seconds=0.5, replies=["no", "Fine."]) as terminal:
        terminal.prompt()
        terminal.type(f"\x1b[200~{'word ' * 1500}\x1b[201~\r")
        terminal.wait("reading the prompt:")
        terminal.type(key)
        terminal.wait("stopped; no tokens generated", " of 1,502 prompt tokens · prefill")
        terminal.prompt()
        assert terminal.raw.count("stopping…".encode()) == 1
        figures = terminal.raw.index(b"stopped after")
        assert terminal.raw.index(b"reading") < terminal.raw.index("stopping…".encode()) < figures
        match = re.search(r"stopped after ([\d,]+) of 1,502 prompt tokens · prefill", terminal.text)
        assert match is not None
        read = int(match[1].replace(",", ""))
        assert read % 128 == 0
        assert "stopping" not in terminal.text
        assert "to first token" not in terminal.text
        terminal.type("/continue\r")
        terminal.wait(f"1,502 prompt tokens ({1502 - read:,} new)")


def test_other_keys_do_not_stop_a_reply(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[SHORT], token_seconds=0.03) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word2")
        terminal.type("cat\x1b[D")
        terminal.wait("word5")
        terminal.type("\x1bOD\x1b\rX")  # Left in its other encoding, Alt-Enter, a letter.
        terminal.wait(f"{SHORT}\n\n> c\n  Xat")


@pytest.mark.slow
def test_a_paste_during_a_reply_is_kept_as_one_paste(tmp_path: Path) -> None:
    lines = "".join(f"{number}: a line that is pasted\r" for number in range(2000))
    script = {"replies": [WORDS[:400], "ok"], "token_seconds": 0.02, "context_size": 20_000}
    with Terminal("chat", "-q", models=tmp_path, **script) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word2")
        for start in range(0, len(lines), 1000):
            terminal.type(("" if start else "\x1b[200~") + lines[start : start + 1000])
        terminal.type("\x1b[201~ what is it?\r")
        terminal.wait("\n> [Pasted text #1 +2,000 lines] what is it?\nok\n\n>")
        assert "a line that" not in terminal.text
        terminal.type(f"/save {tmp_path}/talk.json\r")
        terminal.wait("saved to")
        asked = json.loads((tmp_path / "talk.json").read_text())["messages"][2]["content"]
        assert asked == lines.replace("\r", "\n") + " what is it?"


@pytest.mark.slow
def test_a_paste_may_begin_in_a_reply_and_end_at_the_prompt(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[SHORT, "ok"], token_seconds=0.02) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word2")
        terminal.type("\x1b[200~one\rtwo")
        terminal.wait("word13")
        terminal.prompt()
        terminal.type("\rthree\x1b[201~\r")
        terminal.wait("> one\n  two\n  three\nok")


@pytest.mark.slow
def test_ctrl_c_twice_leaves_once_the_reply_is_saved(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[WORDS], token_seconds=0.4) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word1")
        pid = terminal.process.program.pid
        slept = count_sleeps(pid)
        terminal.type("\x03")
        wait_for(lambda: count_sleeps(pid) > slept, "the signal to be heard")  # Two signals at once would count as one.
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "\nstopped; /continue resumes the reply" in terminal.text
        assert terminal.text.endswith("\nqwchat: interrupted")
        assert terminal.raw.rindex(b"\x1b[?2004l") > terminal.raw.rindex(b"\x1b[?2004h")


def test_ctrl_c_twice_leaves_even_if_the_first_stopped_a_reply(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[WORDS], token_seconds=0.03) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word3")
        terminal.type("\x03")
        terminal.wait("stopped; /continue resumes the reply")
        terminal.prompt()
        terminal.type("\x03")
        assert terminal.end() == 130


@pytest.mark.slow
def test_ctrl_c_again_much_later_stays(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("\x03")
        terminal.wait("press Ctrl-D or type /quit to leave")
        time.sleep(1.1)  # Wait until the second within which a second Ctrl-C leaves has passed.
        terminal.type("\x03")
        terminal.wait("leave\n>\npress Ctrl-D or type /quit to leave")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0


def test_ctrl_c_does_not_discard_keys_typed_before_it(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[WORDS, "ok"], token_seconds=0.1) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word1")
        terminal.type("next question\x03")
        terminal.wait("stopped; /continue resumes the reply\n\n> next question")


@pytest.mark.slow
def test_ctrl_z_suspends_a_reply_that_continues_later(tmp_path: Path) -> None:
    from tests.cli.runs import FAKE

    shell = ["/bin/bash", "--norc", "--noediting", "-i"]
    script = {"replies": [SHORT], "token_seconds": 0.1}
    with Terminal(models=tmp_path, command=shell, variables={"PS1": "$ "}, **script) as terminal:
        terminal.wait("$")
        terminal.type(f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} chat -q\r")
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word1")
        terminal.type("\x1a")
        terminal.wait("Stopped")
        terminal.type("echo visible\r")
        terminal.wait("$ echo visible\nvisible")
        terminal.type("fg\r")
        terminal.wait("word5")
        terminal.type("unseen")
        terminal.wait("word13\n\n> unseen")
        assert terminal.text.count("unseen") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "shown", "code"),
    [
        ("chat -q", ">", 0),  # At the prompt, it acts as Ctrl-D.
        ("chat -q --prompt go", "word3", 130),  # A reply in a chat is stopped and saved.
        ("-q -p go", "word3", 143),
    ],
)
def test_a_kill_signal_restores_the_terminal(arguments: str, shown: str, code: int, tmp_path: Path) -> None:
    chat = f'sh -c \'echo $$; exec "$0" "$1" {arguments}\' "$0" "$1"'
    script = f'{chat}; code=$?; echo; echo code $code; stty -a | grep -o "[-]*icanon\\|[-]*echo "'
    command = ["/bin/sh", "-c", script, sys.executable, str(FAKE)]
    with Terminal(models=tmp_path, command=command, replies=[SHORT], token_seconds=0.2) as terminal:
        os.kill(int(terminal.wait(shown).split()[0]), signal.SIGTERM)
        terminal.end()
        assert terminal.text.splitlines()[-3:] == [f"code {code}", "icanon", "echo"]
