"""What the keys of the prompt do, besides what they do in emacs or vi."""

from __future__ import annotations

from collections.abc import Callable

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import Completer
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, emacs_insert_mode, has_completions, has_focus, vi_insert_mode
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from qwchat.chat.editor import blocks, toolkit
from qwchat.chat.editor.completion import take, walk
from qwchat.chat.editor.external import edited
from qwchat.chat.editor.paste import Folds, normalised
from qwchat.errors import QwchatError


def bindings(folds: Folds, completer: Completer, buffer: Callable[[], Buffer]) -> KeyBindings:
    """The bindings of a prompt that fills `buffer()`. In a search the keys are prompt-toolkit's."""
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)
    inserting = typing & (emacs_insert_mode | vi_insert_mode)

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        text = event.current_buffer
        chosen = text.complete_state.current_completion if text.complete_state is not None else None
        if chosen is not None:
            take(text, chosen)  # The next Enter sends.
        elif blocks.is_open(text.text):
            text.newline(copy_margin=False)
        else:
            text.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("c-j", filter=typing)
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("tab", filter=typing & inserting)
    def choose_next(event: KeyPressEvent) -> None:
        walk(event.current_buffer, completer)

    @keys.add("s-tab", filter=typing & inserting)
    def choose_previous(event: KeyPressEvent) -> None:
        walk(event.current_buffer, completer, back=True)

    @Condition
    def alone() -> bool:
        return not toolkit.keys_wait()

    # Not eager in front of another key: the two are Alt and that key, such as Alt-Enter.
    @keys.add("escape", filter=typing & emacs_insert_mode & has_completions, eager=alone)
    def close_menu(event: KeyPressEvent) -> None:
        event.current_buffer.cancel_completion()

    @keys.add(Keys.BracketedPaste, filter=typing)
    def paste(event: KeyPressEvent) -> None:
        before = event.current_buffer.document.text_before_cursor
        event.current_buffer.insert_text(folds.inserted(normalised(event.data), before))

    @Condition
    def behind_label() -> bool:
        return folds.label_at_end(buffer().document.text_before_cursor) is not None

    @keys.add("backspace", filter=inserting & behind_label)
    @keys.add("c-w", filter=inserting & behind_label)
    @keys.add("escape", "backspace", filter=inserting & behind_label)
    def delete_paste(event: KeyPressEvent) -> None:
        label = folds.label_at_end(event.current_buffer.document.text_before_cursor) or ""
        event.current_buffer.delete_before_cursor(len(label))

    @keys.add("c-x", "c-e", filter=typing)
    def edit(event: KeyPressEvent) -> None:
        event.app.create_background_task(_edit(event, folds))

    return keys


async def _edit(event: KeyPressEvent, folds: Folds) -> None:
    """Let the person change the input in $EDITOR; a failure is said above the prompt."""
    shown = event.current_buffer.text

    def elsewhere() -> str:
        try:
            return folds.returned(edited(folds.expanded(shown)[0]), shown)
        except QwchatError as error:
            event.app.output.write(f"qwchat: error: {error}\n")
            event.app.output.flush()
            return shown

    text = await run_in_terminal(elsewhere)
    event.current_buffer.document = Document(text, len(text))
