"""Tab completion, input history and suggestions, in the interfaces of prompt-toolkit."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

from prompt_toolkit.auto_suggest import AutoSuggest, Suggestion
from prompt_toolkit.buffer import Buffer, CompletionState
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, get_common_complete_suffix
from prompt_toolkit.document import Document
from prompt_toolkit.history import History

from qwchat.chat.editor import toolkit
from qwchat.chat.editor.history import HistoryEntry, HistoryFile
from qwchat.chat.editor.message_reader import Suggest
from qwchat.chat.editor.paste_folds import PasteFolds, Span
from qwchat.errors import QwchatError

TAB_WAIT_SECONDS = 0.15
"""How long Tab, and the keys after it, wait for completions. Later completions appear once they are found."""

_COMPLETED_WHILE_TYPING = re.compile(r"\A/|(?:\A|\s)@\S*\Z")


def completes_while_typing(text: str) -> bool:
    """Return True if completions appear without Tab: in a command, and after `@`."""
    return bool(_COMPLETED_WHILE_TYPING.search(text))


class SuggestionCompleter(Completer):
    """Completer that offers the results of `suggest`. An expected error means no completions."""

    def __init__(self, suggest: Suggest) -> None:
        self._suggest = suggest

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield the completions of the text before the cursor."""
        try:
            for found in self._suggest(document.text_before_cursor):
                yield Completion(found.text, -found.replaced, display_meta=found.note)
        except (QwchatError, OSError):
            return


def press_tab(buffer: Buffer, completer: Completer, *, backwards: bool = False) -> None:
    """Insert the only completion, or move to the next one in the menu, as Tab does.

    Tab first inserts the prefix that all completions share, then selects the first one.

    Args:
        buffer: The input.
        completer: Source of the completions.
        backwards: Move to the previous completion, as Shift-Tab does.
    """
    state = buffer.complete_state
    if state is not None and state.current_completion is not None:
        buffer.complete_previous() if backwards else buffer.complete_next()
        return
    # An open menu is used as it is: searching again may be slow.
    found = (
        state.completions if state is not None and state.completions else _find_within_wait(completer, buffer.document)
    )
    if found is None:
        buffer.start_completion(select_first=not backwards, select_last=backwards)
    elif len(found) == 1:
        buffer.cancel_completion()
        buffer.apply_completion(found[0])
    elif found:
        _open_menu(buffer, found, backwards=backwards)


def _open_menu(buffer: Buffer, found: list[Completion], *, backwards: bool) -> None:
    """Open the menu of `found`, with their common prefix inserted or with the first or last entry selected."""
    common = "" if backwards else get_common_complete_suffix(buffer.document, found)
    if common:
        buffer.insert_text(common)
        found = [completion.new_completion_from_position(len(common)) for completion in found]
    buffer.complete_state = CompletionState(buffer.document, found)
    if not common:
        buffer.go_to_completion(len(found) - 1 if backwards else 0)
    buffer.on_completions_changed.fire()


def accept_completion(buffer: Buffer, chosen: Completion) -> None:
    """Close the menu, keeping `chosen` in the input. After a folder, open the menu of its contents."""
    buffer.complete_state = None
    if chosen.text.endswith("/"):
        buffer.start_completion()


def _find_within_wait(completer: Completer, document: Document) -> list[Completion] | None:
    """Return the completions, or None if they take longer than TAB_WAIT_SECONDS."""
    found: list[Completion] = []

    def search() -> None:
        found.extend(completer.get_completions(document, CompleteEvent(completion_requested=True)))

    searching = threading.Thread(target=search, daemon=True)
    searching.start()
    searching.join(TAB_WAIT_SECONDS)
    return None if searching.is_alive() else found


class InputHistory(History):
    """History of the inputs of this chat and, from `file`, of others.

    Pastes are stored in full, so that a search finds them. `pastes` maps each entry with pastes to their positions.
    """

    def __init__(self, file: HistoryFile | None, folds: PasteFolds) -> None:
        super().__init__()
        self._file = file
        self._folds = folds
        self.pastes: dict[str, tuple[Span, ...]] = {}

    def load_history_strings(self) -> Iterable[str]:
        """Return the entries of the file, newest first."""
        entries = self._file.entries() if self._file is not None else []
        self.pastes.update((entry.text, entry.pastes) for entry in entries if entry.pastes)
        return [entry.text for entry in reversed(entries)]

    def append_string(self, string: str) -> None:
        """Add an input as it was displayed, unless it repeats the last one."""
        entry = self._add_entry(string)
        if entry is not None:
            self.store_string(entry.text)

    def store_string(self, string: str) -> None:
        """Write an input, with pastes in full, to the file."""
        if self._file is not None:
            self._file.append(HistoryEntry(string, self.pastes.get(string, ())))

    def keep_unsent(self, string: str) -> None:
        """Add an input that was not sent, for this chat only."""
        self._add_entry(string)

    def fold(self, text: str) -> str:
        """Return `text` with its pastes folded, if it is an entry with pastes."""
        spans = self.pastes.get(text)
        return self._folds.fold(text, spans) if spans else text

    def _add_entry(self, shown: str) -> HistoryEntry | None:
        text, spans = self._folds.expand(shown)
        if not text.strip() or self.get_strings()[-1:] == [text]:
            return None
        if spans:
            self.pastes[text] = tuple(spans)
        toolkit.add_to_history(self, text)
        return HistoryEntry(text, tuple(spans))


class HistorySuggest(AutoSuggest):
    """Suggestion of the rest of the line, if all the typed text begins an earlier entry."""

    def __init__(self, history: InputHistory) -> None:
        self._history = history

    def get_suggestion(self, buffer: Buffer, document: Document) -> Suggestion | None:
        """Return the rest of the newest entry that begins with the typed text."""
        text = document.text
        if not text.strip():
            return None
        for entry in self._history.get_strings()[::-1]:
            if entry.startswith(text) and entry not in self._history.pastes:
                rest = entry[len(text) :].partition("\n")[0]
                if rest:
                    return Suggestion(rest)
        return None
