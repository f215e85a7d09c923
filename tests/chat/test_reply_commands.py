"""Commands for the last reply."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

from qwchat.chat.commands import CommandContext, Outcome, Show, parse, suggestions
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.view import clipboard
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.table import format_answer
from qwchat.errors import UsageError
from qwchat.markdown.styles import PLAIN, Styling
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying

REPLY = "Two **ways**:\n\n1. a\n   ```py\n   x = 1\n     y\n   ```\n2. b\n\n```\nz\x1b\n```\n"
TERMINAL = Styling(terminal=True, emphasis=True, colour=True)


def make_context(*replies: str, styling: Styling = TERMINAL) -> tuple[CommandContext, io.StringIO]:
    """Return a command context after one message, answered with `replies`."""
    session = Session(FakeModel(replies=replies), ReplySettings(SamplingParams(temperature=0.7)))
    for number in range(len(replies)):
        assert list(replying(session, session.ask(f"question {number}")))
    out = io.StringIO()
    return CommandContext(session, "mini", ReplyView(out, styling)), out


def run_command(context: CommandContext, text: str) -> Outcome:
    command = parse(text)
    assert command is not None
    return command[0].run(context, command[1])


def stats(context: CommandContext) -> str:
    shown = run_command(context, "/stats")
    assert isinstance(shown, Show)
    return format_answer(shown.table, shown.text)


def refused(context: CommandContext, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        run_command(context, text)
    return str(caught.value)


@pytest.fixture(autouse=True)
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("TMUX", raising=False)


def test_raw_shows_the_last_reply_or_all_replies_as_text() -> None:
    context, _ = make_context("# One", REPLY)
    assert run_command(context, "/raw") == Show(message=REPLY)
    assert run_command(context, "/raw on") == Show("replies are shown as plain text")
    assert context.view.rendering == "plain"
    assert run_command(context, "/raw off") == Show("replies are shown as rendered Markdown")
    assert context.view.rendering == "markdown"
    assert refused(context, "/raw maybe") == "/raw takes on, off or nothing, not 'maybe'"
    assert refused(make_context()[0], "/raw") == "there is no reply yet"


@pytest.mark.parametrize(
    ("typed", "text", "answer"),
    [
        ("/copy", REPLY.replace("\x1b", "␛"), "copied the reply to the clipboard (69 characters)"),
        ("/copy code 1", "x = 1\n  y", "copied code block 1 to the clipboard (9 characters)"),
        ("/copy 2", "z␛", "copied code block 2 to the clipboard (2 characters)"),
    ],
)
def test_copy_sends_the_text_to_the_terminal(typed: str, text: str, answer: str) -> None:
    context, out = make_context(REPLY)
    assert run_command(context, typed) == Show(answer)
    coded = base64.b64encode(text.encode()).decode()
    assert out.getvalue() == f"\x1b]52;c;{coded}\x07"


def test_what_copy_refuses() -> None:
    context, out = make_context(REPLY)
    assert (
        refused(context, "/copy code")
        == "the last reply has 2 code blocks: choose one, for example /copy code 1 or /write 1 FILE"
    )
    assert refused(context, "/copy code 3") == "there is no code block 3: the last reply has 2"
    assert refused(context, "/copy that") == "/copy takes no argument, code or code N, not 'that'"
    assert refused(make_context("no code")[0], "/copy code") == "the last reply has no code blocks"
    piped, _ = make_context(REPLY, styling=PLAIN)
    assert refused(piped, "/copy") == (
        "there is no terminal, so the clipboard cannot be reached: /write saves code to a file"
    )
    assert out.getvalue() == ""


def test_obstacles_to_copying_are_named() -> None:
    assert clipboard.copy_advice("short", {}) == ""
    assert clipboard.copy_advice("é" * 40_000, {}) == "some terminals accept at most 74 kB"
    assert clipboard.copy_advice("short", {"TMUX": "1"}) == "in tmux this needs: tmux set -s set-clipboard on"
    out = io.StringIO()
    clipboard.copy(out, "x" * 600, {"TERM": "screen.xterm"})
    pieces = out.getvalue().split("\x1b\\")
    assert [piece[:2] for piece in pieces] == ["\x1bP", "\x1bP", ""]
    assert "".join(piece[2:] for piece in pieces).startswith("\x1b]52;c;eHh4")


def test_write_creates_a_file_and_overwrites_none(tmp_path: Path) -> None:
    context, _ = make_context(REPLY)
    path = tmp_path / "two words.py"
    assert run_command(context, f"/write 1 {path}") == Show(f"wrote code block 1 to {path} (2 lines)")
    assert path.read_bytes() == b"x = 1\n  y\n"
    assert run_command(context, f"/write code 2 {path}") == Show(f"wrote code block 2 to {path} (1 line)")
    assert path.read_bytes() == b"z\x1b\n"
    (tmp_path / "mine").write_text("mine")
    assert refused(context, f"/write 1 {tmp_path}/mine") == f"{tmp_path}/mine already exists: choose another name"
    assert refused(context, "/write 1") == "/write needs a file name, for example /write 2 fix.py"
    assert refused(context, f"/write 9 {tmp_path}/x") == "there is no code block 9: the last reply has 2"
    assert refused(context, f"/write 1 {tmp_path}/no/x") == f"cannot write {tmp_path}/no/x: No such file or directory"
    assert run_command(make_context("```\na\n```")[0], f"/write {tmp_path}/only") == Show(
        f"wrote code block 1 to {tmp_path}/only (1 line)"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "only", "two words.py"]


def test_numbers_of_code_are_completed() -> None:
    context, _ = make_context(REPLY)

    def offered(text: str) -> list[tuple[str, str]]:
        return [(suggestion.text, suggestion.note) for suggestion in suggestions(context, text)]

    assert offered("/copy ") == [("code 1", "x = 1"), ("code 2", "z␛")]
    assert offered("/write ") == [("1", "x = 1"), ("2", "z␛")]
    assert offered("/raw o") == [("on", "show replies as plain text"), ("off", "render replies as Markdown")]
    assert list(suggestions(make_context()[0], "/copy ")) == []


def test_stats_adds_up_all_replies() -> None:
    context, _ = make_context("one two three", "four five")
    assert stats(context) == (
        "replies      2\n"
        "prompts      13 tokens, 6 cached (46 %)\n"
        "prefill      7 tokens in 1.00 s, 7.0 tok/s\n"
        "generated    5 tokens in 0.50 s, 6.0 tok/s\n"
        "first token  0.12 s on average, 0.12 s at most"
    )
    context.session.tree.add("assistant", "edited", parent=1)
    context.session.tree.add("assistant", "forged", parent=1, stats={"prompt_tokens": "many"})
    assert stats(context).startswith("replies      2 (2 more without figures)\n")
    assert refused(make_context()[0], "/stats") == "there are no figures yet: send a message first"


def test_stats_counts_the_prefill_of_stopped_replies() -> None:
    context, _ = make_context("one two")
    for _event in replying(context.session, context.session.ask("word " * 300), StopAfter(3)):
        pass
    assert stats(context).splitlines()[:4] == [
        "replies      1",
        "stopped      1 before the first token",
        "prompts      136 tokens, 5 cached (4 %)",
        "prefill      131 tokens in 1.00 s, 131 tok/s",
    ]
    for _event in replying(context.session, context.session.continue_reply()):
        pass
    assert stats(context).splitlines()[:2] == ["replies      2", "stopped      1 before the first token"]


class StopAfter:
    """Asks to stop from the `number`-th call on."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __call__(self) -> bool:
        self._left -= 1
        return self._left <= 0
