"""Key bindings of the prompt, in addition to those of emacs or vi."""

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

from qwchat.chat.editor import message_syntax, toolkit
from qwchat.chat.editor.external_editor import edit_text
from qwchat.chat.editor.paste_folds import PasteFolds, normalise_paste
from qwchat.chat.editor.tab_completion import accept_completion, press_tab
from qwchat.chat.editor.unfolded_thought import UnfoldedThought
from qwchat.errors import QwchatError


def make_bindings(
    folds: PasteFolds, completer: Completer, buffer: Callable[[], Buffer], thought: UnfoldedThought
) -> KeyBindings:
    """Return the key bindings of the prompt. A search keeps prompt-toolkit's own keys.

    Args:
        folds: The folded pastes of the chat.
        completer: Source of the completions that Tab inserts.
        buffer: Function that returns the buffer of the prompt.
        thought: The thought of the last reply. Without one, Ctrl-T keeps its meaning.
    """
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)
    inserting = typing & (emacs_insert_mode | vi_insert_mode)

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        text = event.current_buffer
        chosen = text.complete_state.current_completion if text.complete_state is not None else None
        if chosen is not None:
            accept_completion(text, chosen)  # The next Enter sends.
        elif message_syntax.is_block_open(text.text):
            text.newline(copy_margin=False)
        else:
            text.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("c-j", filter=typing)
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("tab", filter=typing & inserting)
    def choose_next(event: KeyPressEvent) -> None:
        press_tab(event.current_buffer, completer)

    @keys.add("s-tab", filter=typing & inserting)
    def choose_previous(event: KeyPressEvent) -> None:
        press_tab(event.current_buffer, completer, backwards=True)

    @Condition
    def no_key_follows() -> bool:
        return not toolkit.has_pending_keys()

    # Esc followed by another key means Alt and that key, so it is only eager alone.
    @keys.add("escape", filter=typing & emacs_insert_mode & has_completions, eager=no_key_follows)
    def close_menu(event: KeyPressEvent) -> None:
        event.current_buffer.cancel_completion()

    @keys.add(Keys.BracketedPaste, filter=typing)
    def paste(event: KeyPressEvent) -> None:
        before = event.current_buffer.document.text_before_cursor
        event.current_buffer.insert_text(folds.insertion_for(normalise_paste(event.data), before))

    @Condition
    def after_paste_label() -> bool:
        return folds.label_at_end(buffer().document.text_before_cursor) is not None

    @keys.add("backspace", filter=inserting & after_paste_label)
    @keys.add("c-w", filter=inserting & after_paste_label)
    @keys.add("escape", "backspace", filter=inserting & after_paste_label)
    def delete_paste(event: KeyPressEvent) -> None:
        label = folds.label_at_end(event.current_buffer.document.text_before_cursor) or ""
        event.current_buffer.delete_before_cursor(len(label))

    @keys.add("c-x", "c-e", filter=typing)
    def edit_externally(event: KeyPressEvent) -> None:
        event.app.create_background_task(_edit_externally(event, folds))

    @keys.add("c-t", filter=typing & Condition(thought.exists))
    def toggle_thought(event: KeyPressEvent) -> None:
        event.app.create_background_task(thought.toggle(event.app))

    return keys


async def _edit_externally(event: KeyPressEvent, folds: PasteFolds) -> None:
    """Let the user edit the input in $EDITOR, and show a failure above the prompt."""
    shown = event.current_buffer.text

    def run_editor() -> str:
        try:
            return folds.restore_labels(edit_text(folds.expand(shown)[0]), shown)
        except QwchatError as error:
            event.app.output.write(f"qwchat: error: {error}\n")
            event.app.output.flush()
            return shown

    text = await run_in_terminal(run_editor)
    event.current_buffer.document = Document(text, len(text))
