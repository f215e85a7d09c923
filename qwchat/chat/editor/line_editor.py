"""Line editor based on prompt-toolkit, with the chat's keys, history, completion and toolbar."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.enums import EditingMode as Mode
from prompt_toolkit.filters import Condition, vi_navigation_mode
from prompt_toolkit.input import create_input
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.styles import Style

from qwchat.chat.editor import message_syntax, toolbar_line, toolkit
from qwchat.chat.editor.bindings import make_bindings
from qwchat.chat.editor.history import HistoryFile
from qwchat.chat.editor.keyboard import ESCAPE_SECONDS, Keyboard, register_line_breaks
from qwchat.chat.editor.message_reader import CONTINUATION, PROMPT, EditingMode, Suggest, ThoughtKeys
from qwchat.chat.editor.paste_folds import PasteFolds
from qwchat.chat.editor.tab_completion import HistorySuggest, InputHistory, SuggestionCompleter, completes_while_typing
from qwchat.chat.editor.terminal_modes import preserve_signal_handlers, set_bracketed_paste
from qwchat.chat.editor.unfolded_thought import UnfoldedThought
from qwchat.chat.interrupts import TERMINATION_SIGNALS, StopKey
from qwchat.markdown.styles import Styling

KEY_SEQUENCE_SECONDS = 0.5
"""Time within which the bytes of one key arrive over a slow connection."""

MENU_ESCAPE_SECONDS = 0.1
"""The same while a menu is open, so that Esc closes it without a noticeable delay."""

ALT_SECONDS = 1.0
"""Esc and a key pressed within this time count as Alt and that key."""

_DIM = Style.from_dict({"bottom-toolbar": "noinherit dim", "auto-suggestion": "noinherit dim"})
_PLAIN = Style.from_dict({"bottom-toolbar": "noinherit"})


class LineEditor:
    """Line editor with history, completion and multi-line input.

    Args:
        terminal: The terminal to read keys from.
        suggest: Function that suggests continuations of the text before the cursor. It runs in a thread.
        history: File for the input history, or None to keep it in memory.
        styling: What may be drawn. Suggestions of earlier input need dim text, which distinguishes them from typed
            text.
        thoughts: What Ctrl-T does.
        meter: Function that returns the right part of the toolbar. It is called at every key.
    """

    def __init__(
        self,
        terminal: TextIO,
        suggest: Suggest,
        history: Path | None,
        *,
        styling: Styling,
        thoughts: ThoughtKeys,
        meter: Callable[[], str] = str,
    ) -> None:
        register_line_breaks()
        self._style = "bold" if styling.emphasis else ""
        self._meter = meter
        self._folds = PasteFolds()
        self._history = InputHistory(HistoryFile(history) if history is not None else None, self._folds)
        keys = create_input(terminal)
        self._keyboard = Keyboard(keys, thoughts.toggle)
        self._thought = UnfoldedThought(thoughts)
        completer = SuggestionCompleter(suggest)
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            prompt_continuation=CONTINUATION,
            key_bindings=make_bindings(self._folds, completer, lambda: self._session.default_buffer, self._thought),
            completer=completer,
            complete_in_thread=True,
            # prompt-toolkit reserves rows for the menu while this is true.
            complete_while_typing=Condition(lambda: completes_while_typing(self._before_cursor())),
            history=self._history,
            search_ignore_case=True,
            auto_suggest=HistorySuggest(self._history) if styling.emphasis else None,
            input_processors=[TabsProcessor(char1=" ", char2=" ")],
            bottom_toolbar=self._toolbar,
            enable_suspend=True,
            style=_DIM if styling.emphasis else _PLAIN,
            color_depth=None if styling.colour else ColorDepth.DEPTH_1_BIT,
            input=keys,
            output=create_output(always_prefer_tty=True),
        )
        application = self._session.app
        # Fold at once, because more keys may be waiting; a search shows pastes in full until it ends.
        self._session.default_buffer.on_text_changed += self._fold_recalled
        application.before_render += self._fold_recalled
        self._sequence_seconds = KEY_SEQUENCE_SECONDS
        application.before_render += self._shorten_escape_delay
        # Only the toolbar needs the cursor position, so a terminal that does not report it needs no warning.
        toolkit.expect_no_cursor_reports(application)

    def read(self, draft: str = "") -> str:
        """Return the next message.

        Raises:
            EOFError: On Ctrl-D.
            KeyboardInterrupt: On Ctrl-C; Up then brings the input back.
        """
        self._thought.reset()
        try:
            with preserve_signal_handlers():
                text = self._session.prompt([(self._style, PROMPT)], default=draft, pre_run=self._handle_deadly_signals)
        except KeyboardInterrupt:
            self._history.keep_unsent(self._session.default_buffer.text)
            raise
        except OSError as error:
            if error.errno == errno.EIO:  # The terminal was closed.
                raise EOFError from error
            raise
        finally:
            set_bracketed_paste(enabled=True)  # The prompt turns this off.
        message = self._folds.to_message(text)
        return message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _handle_deadly_signals(self) -> None:
        """Let SIGTERM and SIGHUP end the input as Ctrl-D does, so that the terminal is restored."""
        for number in TERMINATION_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP.
                asyncio.get_running_loop().add_signal_handler(number, self._end_input)

    def _end_input(self) -> None:
        toolkit.exit_with(self._session.app, EOFError)

    def ask(self, prompt: str) -> str:
        """Show `prompt` and return one line, which is not kept in the history. Raises the errors of `read`.

        Keys typed before the question appeared are not an answer: they wait for the next prompt.
        """
        typed_before = toolkit.take_typed_ahead(self._session.input)
        question: PromptSession[str] = PromptSession(input=self._session.input, output=self._session.output)
        try:
            return question.prompt([(self._style, prompt)])
        finally:
            toolkit.type_ahead(self._session.input, typed_before + toolkit.take_typed_ahead(self._session.input))
            set_bracketed_paste(enabled=True)  # The prompt turns this off.

    def watch_keys(self) -> AbstractContextManager[Callable[[], StopKey | None]]:
        """Read keys while a reply is generated. Yields a function that returns the stop key pressed, if any."""
        return self._keyboard.watch_keys()

    def set_editing_mode(self, mode: EditingMode) -> None:
        """Use the keys of emacs or of vi from now on."""
        application = self._session.app
        application.editing_mode = Mode.VI if mode == "vi" else Mode.EMACS
        # In vi mode, Esc alone is a frequent key and must not wait for the rest of a sequence.
        self._sequence_seconds = ESCAPE_SECONDS if mode == "vi" else KEY_SEQUENCE_SECONDS
        application.ttimeoutlen = self._sequence_seconds
        application.timeoutlen = ESCAPE_SECONDS if mode == "vi" else ALT_SECONDS

    def _before_cursor(self) -> str:
        return self._session.default_buffer.document.text_before_cursor

    def _shorten_escape_delay(self, _: object) -> None:
        """Recognise Esc sooner while it can close a menu."""
        state = self._session.default_buffer.complete_state
        is_open = state is not None and bool(state.completions)
        self._session.app.ttimeoutlen = min(
            MENU_ESCAPE_SECONDS if is_open else KEY_SEQUENCE_SECONDS, self._sequence_seconds
        )

    def _fold_recalled(self, _: object) -> None:
        """Fold the pastes of a history entry once it is in the input."""
        buffer = self._session.default_buffer
        if buffer.text in self._history.pastes and not self._session.app.layout.is_searching:
            buffer.text = self._history.fold(buffer.text)
            buffer.cursor_position = len(buffer.text)

    def _toolbar(self) -> str:
        keys = (
            toolbar_line.BLOCK_KEYS
            if message_syntax.is_block_open(self._session.default_buffer.text)
            else toolbar_line.MESSAGE_KEYS
        )
        right = " · ".join(part for part in ("vi: normal" if vi_navigation_mode() else "", self._meter()) if part)
        return toolbar_line.render(keys, right, get_app().output.get_size().columns)
