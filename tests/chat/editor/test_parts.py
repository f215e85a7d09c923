"""Parts of the editor that need no pseudo-terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_input, create_pipe_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

from qwchat.chat.editor import toolbar_line
from qwchat.chat.editor.external_editor import edit_text, editor_command
from qwchat.chat.editor.keyboard import Keyboard, register_line_breaks
from qwchat.chat.editor.open_reader import open_reader
from qwchat.chat.editor.plain_reader import PlainReader
from qwchat.chat.editor.tab_completion import SuggestionCompleter, completes_while_typing, press_tab
from qwchat.chat.interrupts import Interrupts, StopKey
from qwchat.chat.suggestions import Suggestion
from qwchat.chat.view.screen import Screen
from qwchat.errors import QwchatError, UsageError
from qwchat.markdown.styles import PLAIN
from tests.chat.editor.no_thoughts import NoThoughts
from tests.clocks import calls, wait_for


def lines(*texts: str) -> PlainReader:
    return PlainReader(io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())), None)


def read_all(reader: PlainReader) -> list[str]:
    found = []
    while True:
        try:
            found.append(reader.read())
        except EOFError:
            return found


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        ("one\ntwo\r\n", ["one", "two"]),
        ("a \\\nb\\\n\\", ["a \nb\n"]),
        ("C:\\\\\nnext", ["C:\\\\", "next"]),
        ('"""\n/quit\n  x"""\nnext', ["//quit\n  x", "next"]),
        ('"""\nnever closed\n', ['"""\nnever closed']),
        ("\n\nx", ["", "", "x"]),
    ],
)
def test_plain_lines(typed: str, messages: list[str]) -> None:
    assert read_all(lines(*typed.split("\n"))) == messages


def test_a_plain_draft_is_shown_and_sent_by_an_empty_line() -> None:
    shown = io.StringIO()
    reader = PlainReader(io.TextIOWrapper(io.BytesIO(b"\nother\n")), shown)
    assert reader.read("old \x1b[1m\ntext") == "old \x1b[1m\ntext"
    assert reader.read("old text") == "other"
    assert shown.getvalue().splitlines()[:3] == ["| old ␛[1m", "| text", "(press Enter to send this)"]


def test_plain_input_that_is_not_text() -> None:
    reader = PlainReader(io.TextIOWrapper(io.BytesIO(b"ab\xff\n")), None)
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 3 of a line\)"):
        reader.read()


@pytest.mark.parametrize(
    ("typed", "stop", "kept"),
    [
        ("\x1b", "escape", ""),
        ("\x1b\x1b", "escape", ""),
        ("\x03", "interrupt", ""),
        ("ab\x03cd", "interrupt", "abcd"),
        ("ab\x1b", "escape", "ab"),
        ("\x1b[A\x1bOB\x1b[1;5C", None, "\x1b[A\x1bOB\x1b[1;5C"),
        ("\x1bx", None, "\x1bx"),
        ("\x1b[13;2u", None, "\x1b[13;2u"),
        ("é日\r\x04", None, "é日\r\x04"),
        ("\x1b[200~a\x1b\x03b\x1b[201~", None, "a\x1b\x03b"),
        ("\x1b[12;40R\x1b[<0;1;1M", None, ""),
    ],
)
def test_stop_keys_stop_a_reply_and_other_keys_wait(typed: str, stop: StopKey | None, kept: str) -> None:
    register_line_breaks()
    with create_pipe_input() as pipe:
        with Keyboard(pipe).watch_keys() as poll:
            assert poll() is None
            pipe.send_text(typed)
            pressed = [poll() for _ in range(2)]
            wait_for(lambda: pressed.append(poll()) or not stop or stop in pressed, "the key")
            wait_for(lambda: not select.select([pipe.fileno()], [], [], 0)[0], "the keys to be read")
            pressed.append(poll())
        assert {key for key in pressed if key} == ({stop} if stop else set())
        assert "".join(key.data for key in get_typeahead(pipe)) == kept


def test_ctrl_t_shows_the_thought_or_waits_for_the_prompt() -> None:
    thinking, toggled = True, []

    def toggle() -> bool:
        toggled.append(thinking)
        return thinking

    with create_pipe_input() as pipe:
        with Keyboard(pipe, toggle).watch_keys() as poll:
            pipe.send_text("a\x14b\x14")
            wait_for(lambda: poll() or len(toggled) == 2, "the keys")
            thinking = False
            pipe.send_text("\x14c")
            wait_for(lambda: poll() or len(toggled) == 3, "the key")
        assert toggled == [True, True, False]
        assert "".join(key.data for key in get_typeahead(pipe)) == "ab\x14c"


def test_an_arrow_key_in_two_parts_is_not_escape() -> None:
    with create_pipe_input() as pipe, Keyboard(pipe).watch_keys() as poll:
        pipe.send_text("\x1b")
        assert poll() is None
        pipe.send_text("[A")
        keys: list[KeyPress] = []

        def kept() -> list[KeyPress]:
            assert poll() is None
            keys.extend(get_typeahead(pipe))
            return keys

        wait_for(kept, "the arrow")
        assert [key.key for key in keys] == [Keys.Up]


def test_escape_and_alt_are_told_apart_however_rarely_keys_are_polled() -> None:
    """Press more keys during a chunk of a prefill, which may take seconds, as an impatient user does."""
    with create_pipe_input() as pipe:
        keyboard = Keyboard(pipe)
        with keyboard.watch_keys() as poll:
            for typed, keys in (("\x1b", 1), ("x", 2), ("\x1by", 4)):
                pipe.send_text(typed)
                wait_for(lambda keys=keys: sum(map(len, keyboard._batches)) == keys, "the keys to be told apart")
            pressed: list[StopKey | None] = []
            wait_for(lambda: pressed.append(poll()) or "escape" in pressed, "the key")
            assert poll() is None
        assert "".join(key.data for key in get_typeahead(pipe)) == "x\x1by"


def test_a_closed_terminal_is_not_read() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal, Keyboard(create_input(terminal)).watch_keys() as poll:
        os.close(ours)
        wait_for(lambda: "keyboard" not in [thread.name for thread in threading.enumerate()], "the end of the thread")
        assert poll() is None


def test_polling_is_cheap() -> None:
    with create_pipe_input() as pipe, Keyboard(pipe).watch_keys() as poll:
        poll()
        assert calls(poll) < 20  # The engine polls for every token.


def test_ctrl_c_read_together_with_the_message_stops_its_reply() -> None:
    with create_pipe_input() as pipe:
        store_typeahead(pipe, [KeyPress(Keys.ControlC, "\x03"), KeyPress("n", "n")])
        with Keyboard(pipe).watch_keys() as poll:
            assert poll() == "interrupt"
            assert poll() is None
        assert [key.key for key in get_typeahead(pipe)] == ["n"]


def watching(*keys: StopKey | None) -> Callable[[], object]:
    waiting = list(keys)

    @contextmanager
    def watch() -> Iterator[Callable[[], StopKey | None]]:
        yield lambda: waiting.pop(0) if waiting else None

    return watch


def test_keys_request_a_stop_which_ends_with_the_reply() -> None:
    interrupts = Interrupts(watching(None, "escape"))
    with interrupts:
        assert [interrupts.stop_requested() for _ in range(3)] == [False, True, True]
    with interrupts:
        assert not interrupts.stop_requested()
    assert not interrupts.leaving


def test_ctrl_c_twice_leaves_as_a_key_and_as_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    interrupts = Interrupts(watching("interrupt"))
    with interrupts:
        assert interrupts.stop_requested()
    clock[0] += 1.5
    assert not interrupts.note_ctrl_c()
    clock[0] += 0.9
    assert interrupts.note_ctrl_c()
    assert interrupts.leaving


def test_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts(watching())
    with interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.stop_requested()
        assert not interrupts.leaving
        clock[0] += 2
        with pytest.raises(KeyboardInterrupt):  # The first request was not handled for two seconds.
            signal.raise_signal(signal.SIGINT)
        clock[0] += 0.5
        signal.raise_signal(signal.SIGINT)
        assert interrupts.leaving
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with Interrupts():  # Outside a chat, the end of the reply is not awaited.
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_the_end_of_a_reply_interrupts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts(watching())
    with interrupts.deferred():
        with interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.stop_requested()
        clock[0] += 2
        signal.raise_signal(signal.SIGINT)
        clock[0] += 2
        with pytest.raises(KeyboardInterrupt):  # The work takes longer than the user wants to wait.
            signal.raise_signal(signal.SIGINT)
    assert not interrupts.leaving
    assert signal.getsignal(signal.SIGINT) is before
    clock[0] += 2
    with interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert interrupts.leaving


def editor(tmp_path: Path, body: str) -> dict[str, str]:
    script = tmp_path / "edit.py"
    script.write_text(f"import pathlib, sys\npath = pathlib.Path(sys.argv[-1])\n{body}\n")
    return {"EDITOR": f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"}


def test_the_external_editor(tmp_path: Path) -> None:
    check = "assert path.stat().st_mode & 0o77 == 0 or path.parent.stat().st_mode & 0o77 == 0"
    environment = editor(tmp_path, f"{check}\npath.write_bytes(path.read_bytes() + 'é\\n\\n'.encode())")
    assert edit_text("one\ntwo", environment) == "one\ntwo\né\n"
    assert edit_text("", environment) == "é\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(3)", "failed with exit code 3: the message is unchanged"),
        ("path.unlink()", "cannot read the edited text"),
        ("path.write_bytes(b'\\xff')", "cannot read the edited text"),
    ],
)
def test_an_external_editor_that_fails(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(QwchatError, match=message):
        edit_text("text", editor(tmp_path, body))


def test_which_external_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert editor_command({"VISUAL": "code --wait", "EDITOR": "vi"}) == ["code", "--wait"]
    assert editor_command({"VISUAL": " ", "EDITOR": "'my editor'"}) == ["my editor"]
    with pytest.raises(QwchatError, match=r"\$EDITOR is not a valid command line"):
        editor_command({"EDITOR": "'"})
    with pytest.raises(QwchatError, match="cannot run /nowhere/editor: No such file"):
        edit_text("x", {"EDITOR": "/nowhere/editor"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QwchatError, match=r"no editor found: set \$EDITOR"):
        editor_command({})


@pytest.mark.parametrize(
    ("columns", "right", "expected"),
    [
        (80, "", "Enter sends · Alt-Enter adds a line · Ctrl-R searches · /help"),
        (80, "1k/4k", "Enter sends · Alt-Enter adds a line · Ctrl-R searches · /help" + " " * 13 + "1k/4k"),
        (50, "1k/4k", "Enter sends · Alt-Enter adds a line" + " " * 9 + "1k/4k"),
        (30, "1k/4k", "Enter sends" + " " * 13 + "1k/4k"),
        (20, "1k/4k", "Enter sends   1k/4k"),
        (19, "1k/4k", "Enter sends"),
    ],
)
def test_the_toolbar_shows_the_keys_that_fit(columns: int, right: str, expected: str) -> None:
    assert toolbar_line.render(toolbar_line.MESSAGE_KEYS, right, columns) == expected


def test_completions_appear_while_typing_commands_and_files() -> None:
    assert [
        text
        for text in ("/", "/s", "/set t", "look at @", "@fi", "a@b", "text", "", "x /set", "@a b")
        if completes_while_typing(text)
    ] == ["/", "/s", "/set t", "look at @", "@fi"]


def test_tab_completes_and_survives_failures() -> None:
    def suggest(text: str) -> Iterator[Suggestion]:
        if text == "bad":
            raise UsageError("no")
        yield Suggestion("/help", len(text), "what there is")

    completer = SuggestionCompleter(suggest)
    found = list(completer.get_completions(Document("/hp"), CompleteEvent()))
    assert [(item.text, item.start_position, item.display_meta_text) for item in found] == [
        ("/help", -3, "what there is")
    ]
    assert list(completer.get_completions(Document("bad"), CompleteEvent())) == []
    buffer = Buffer(document=Document("/hp"))
    press_tab(buffer, completer)
    assert buffer.text == "/help"


def test_plain_lines_without_a_working_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    import prompt_toolkit.input

    def refuse(*unused: object) -> None:
        raise OSError("no such terminal")

    monkeypatch.setattr("qwchat.chat.editor.line_editor.create_input", refuse)
    assert prompt_toolkit.input.create_input is not refuse
    message = io.StringIO()
    reader = open_reader(
        io.TextIOWrapper(io.BytesIO(b"hello\n")),
        lambda text: (),
        Screen(message, PLAIN),
        history=None,
        thoughts=NoThoughts(),
    )
    assert reader.read() == "hello"
    assert message.getvalue() == (
        "qwchat: the line editor does not work here (no such terminal): "
        "Enter sends, a backslash before Enter adds a line\n> "
    )


def test_nothing_is_imported_before_it_is_needed() -> None:
    import subprocess

    code = "import sys, qwchat.chat.editor, qwchat.chat.loop; print('prompt_toolkit' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert ran.stdout == "False\n"
