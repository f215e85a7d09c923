"""Where a person types. prompt-toolkit is imported here and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from qwchat.chat.suggestions import Suggestion
from qwchat.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

PROMPT = "> "
CONTINUATION = "  "
Suggest = Callable[[str], Iterable[Suggestion]]


class Reader(Protocol):
    """Reads one message after another."""

    def read(self, draft: str = "") -> str:
        """The next message, which begins with ``draft`` where that can be changed.

        Raises EOFError at the end of the input, KeyboardInterrupt on Ctrl-C.
        """


class PlainReader:
    """Reads lines from ``stream``: for dumb terminals and for input that is no terminal.

    Args:
        stream: the input, bytes of UTF-8.
        prompt: where to write the prompt sign, or None where nobody watches.
    """

    def __init__(self, stream: TextIO, prompt: TextIO | None) -> None:
        self._stream = stream
        self._prompt = prompt

    def read(self, draft: str = "") -> str:
        """The next line without its end. Raises EOFError, and UsageError for bytes that are no UTF-8."""
        if self._prompt is not None:
            self._prompt.write(PROMPT)
            self._prompt.flush()
        line = self._stream.buffer.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"the input is no UTF-8 text (byte {error.start + 1} of a line): convert it") from error


class Editor:
    """A line editor with history, completion and several lines.

    Args:
        terminal: the terminal to read keys from.
        suggest: what may follow the text before the cursor.
        history: file that keeps what was typed, or None to keep it in memory.
        emphasis: whether the prompt sign may be bold.
    """

    def __init__(
        self,
        terminal: TextIO,
        suggest: Suggest,
        history: Path | None,
        *,
        emphasis: bool,
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.input import create_input
        from prompt_toolkit.output import create_output

        self._style = "bold" if emphasis else ""
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            prompt_continuation=CONTINUATION,
            key_bindings=_bindings(),
            completer=_completer(suggest),
            complete_while_typing=True,
            history=_history(history),
            auto_suggest=AutoSuggestFromHistory(),
            input=create_input(terminal),
            output=create_output(always_prefer_tty=True),
        )

    def read(self, draft: str = "") -> str:
        """The next message. Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C."""
        return self._session.prompt([(self._style, PROMPT)], default=draft)


def _bindings() -> KeyBindings:
    """Enter sends (or takes the chosen completion), Tab completes; Alt-Enter and Ctrl-J break the line."""
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
            return
        buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("tab")
    def complete(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        found = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
        if len(found) == 1:
            buffer.cancel_completion()
            buffer.apply_completion(found[0])
        elif buffer.complete_state is not None:
            buffer.complete_next()
        else:
            buffer.start_completion(insert_common_part=True)

    return bindings


def _completer(suggest: Suggest) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Suggested(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            for suggestion in suggest(document.text_before_cursor):
                yield Completion(suggestion.text, -suggestion.replaced, display_meta=suggestion.note)

    return Suggested()


def _history(path: Path | None) -> History:
    """A history file that only its owner may read; in memory where the file cannot be had."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def history_file() -> Path:
    """Where the history of this person's input is kept."""
    import platformdirs

    return platformdirs.user_state_path("qwchat", appauthor=False) / "history"


@contextmanager
def keys_unseen(terminal: TextIO, *, by_line: bool) -> Iterator[None]:
    """Keep keys typed between prompts out of replies: they are not echoed, and wait for the next prompt.

    ``by_line``: the next prompt reads lines that the terminal edits, so keys wait in that form; otherwise each waits as
    it was pressed, Enter and Ctrl-D included.
    """
    if sys.platform == "win32" or not terminal.isatty():
        yield
        return
    import termios

    descriptor = terminal.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~termios.ECHO
    if not by_line:
        quiet[0] &= ~termios.ICRNL
        quiet[3] &= ~termios.ICANON
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
