"""Replies on terminals of several sizes, checked against the exact screen and everything scrolled away."""

from __future__ import annotations

import base64
import re
import shlex
import sys
from pathlib import Path

import pytest

from qwchat.chat.view.tail import TerminalSize
from qwchat.markdown.block_renderer import RenderOptions
from qwchat.markdown.stream_parser import StreamParser
from tests.chat.pty import Terminal
from tests.cli.runs import FAKE
from tests.tiers import some

REPLY = """\
# Three *ways*

Use `map`, a **list comprehension** or a loop; <think> is not a tag here,
and single newlines stay. See [the manual](https://docs.python.org/3/_x_) for all of it, in some detail.

1. First:

   ```python
   def doubled(values: list[int]) -> list[int]:
       return [2 * value for value in values if value is not None and value > 0]
   ```
2. Second 😀, 漢字かな交じり文です。とても長い文章なので折り返します。
   - nested **item**

| way | speed |
|-----|------:|
| map | 1.0 |
| loop | *1.3* |

> That is all.
"""


def rendered(text: str, size: TerminalSize) -> list[str]:
    """Return the rows of the whole text, with code wrapped as a terminal of this size does."""
    parser = StreamParser(RenderOptions(size.columns, size.tail_rows, True))
    parser.push(text)
    parser.end()
    rows: list[str] = []
    for row in parser.take_rows():
        shown = row.text
        while row.soft and len(shown) > size.columns:
            rows.append(shown[: size.columns].rstrip())
            shown = shown[size.columns :]
        rows.append(shown.rstrip())
    return rows


def seen(terminal: Terminal) -> list[str]:
    """Return the lines on the screen and above it, without the empty cells behind wide characters."""
    return [line.replace("\0", "") for line in terminal.text.splitlines()]


@pytest.mark.parametrize(("rows", "columns"), some([(10, 20), (24, 80), (50, 200), (6, 33)], 2))
def test_a_reply_on_terminals_of_any_size(tmp_path: Path, rows: int, columns: int) -> None:
    arguments = ("-q", "-p", "how?", "--stats", "off")
    with Terminal(
        *arguments, models=tmp_path, rows=rows, columns=columns, replies=[REPLY], token_seconds=0.004
    ) as terminal:
        assert terminal.end() == 0
        assert seen(terminal) == rendered(REPLY, TerminalSize(columns, rows))


@pytest.mark.slow
def test_a_reply_of_more_than_ten_thousand_lines(tmp_path: Path) -> None:
    reply = "".join(f"- *{number}*\n" for number in range(10_500))
    with Terminal("-q", "-p", "count", "--ctx", "60000", models=tmp_path, replies=[reply]) as terminal:
        assert terminal.end() == 0
        assert seen(terminal) == [f"• {number}" for number in range(10_500)]


@pytest.mark.slow
def test_a_resize_while_a_reply_streams(tmp_path: Path) -> None:
    reply = "".join(f"word{number} " for number in range(60)) + "\n\n" + REPLY
    with Terminal(
        "-q", "-p", "how?", models=tmp_path, rows=20, columns=60, replies=[reply], token_seconds=0.02
    ) as terminal:
        terminal.wait("word20")
        terminal.resize(20, 100)
        terminal.wait("Three ways")
        terminal.resize(30, 100)
        assert terminal.end() == 0
        text = "".join(seen(terminal))
        for word in re.findall(r"\w+", reply):
            assert word in text
        assert [text.count(f"word{number} word") for number in range(20, 25)] == [1] * 5
        assert seen(terminal)[-13:] == rendered(REPLY, TerminalSize(100, 30))[-13:]


@pytest.mark.slow
def test_typing_during_a_reply_does_not_disturb_the_screen(tmp_path: Path) -> None:
    reply = "one two three four five six seven eight nine ten eleven twelve " * 4
    with Terminal(
        "-q", "-p", "count", models=tmp_path, rows=20, columns=40, replies=[reply], token_seconds=0.02
    ) as terminal:
        terminal.wait("three")
        terminal.type("typed\r\rmore\r")
        assert terminal.end() == 0
        assert seen(terminal) == rendered(reply, TerminalSize(40, 20))


@pytest.mark.slow
def test_a_reply_resumed_in_the_foreground_keeps_the_output_of_the_shell(tmp_path: Path) -> None:
    reply = " ".join(f"word{number}" for number in range(110))
    shell = ["/bin/bash", "--norc", "--noediting", "-i"]
    arguments = f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} -q -p hi"
    with Terminal(
        models=tmp_path,
        rows=40,
        columns=100,
        command=shell,
        variables={"PS1": "$ "},
        replies=[reply],
        token_seconds=0.03,
    ) as terminal:
        terminal.wait("$")
        terminal.type(f"{arguments}\r")
        terminal.wait("word90")
        terminal.type("\x1a")
        terminal.wait("Stopped")
        terminal.type("fg\r")
        terminal.wait("word109")
        terminal.type("exit\r")
        terminal.end()
        lines = seen(terminal)
        assert [line[:12] for line in lines].count("[1]+  Stoppe") == 1
        assert "$ fg" in lines
        whole = rendered(reply, TerminalSize(100, 40))
        assert any(lines[start : start + len(whole)] == whole for start in range(len(lines)))


def test_a_reply_can_be_shown_as_text_copied_and_written(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=["**Look**:\n```py\nx = 1\n```"]) as terminal:
        terminal.prompt()
        terminal.type("show me\r")
        terminal.wait("── 1 · py")
        terminal.prompt()
        terminal.type("/raw\r")
        terminal.wait("**Look**:\n```py\nx = 1\n```")
        terminal.prompt()
        terminal.type("/copy code\r")
        terminal.wait("copied code block 1 to the clipboard (5 characters)")
        assert b"\x1b]52;c;" + base64.b64encode(b"x = 1") + b"\x07" in terminal.raw
        terminal.prompt()
        terminal.type(f"/write {tmp_path}/x.py\r")
        terminal.wait(f"wrote code block 1 to {tmp_path}/x.py")
        terminal.prompt()
        terminal.type("/raw on\r")
        terminal.wait("replies are shown as plain text")
        terminal.prompt()
        terminal.type("again\r")
        terminal.wait("> again\n**Look**:\n```py\nx = 1\n```")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0
    assert (tmp_path / "x.py").read_text() == "x = 1\n"
