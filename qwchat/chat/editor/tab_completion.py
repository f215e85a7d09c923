"""What may be typed next, and what was typed before, as prompt-toolkit wants to be told."""

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
"""How long Tab waits for completions; keys behind it wait too. Later ones appear when they are found."""

_COMPLETED_WHILE_TYPING = re.compile(r"\A/|(?:\A|\s)@\S*\Z")


def completes_while_typing(text: str) -> bool:
    """Whether completions are shown without being asked for: in a command, and behind `@`."""
    return bool(_COMPLETED_WHILE_TYPING.search(text))


class SuggestionCompleter(Completer):
    """Completions from `suggest`, whose expected failures mean that there are none."""

    def __init__(self, suggest: Suggest) -> None:
        self._suggest = suggest

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        try:
            for found in self._suggest(document.text_before_cursor):
                yield Completion(found.text, -found.replaced, display_meta=found.note)
        except (QwchatError, OSError):
            return


def press_tab(buffer: Buffer, completer: Completer, *, backwards: bool = False) -> None:
    """Do what Tab does, or Shift-Tab (`backwards`): take the only completion, or move to the next one in the menu.

    Tab inserts the part that all completions have in common before it chooses the first one.
    """
    state = buffer.complete_state
    if state is not None and state.current_completion is not None:
        buffer.complete_previous() if backwards else buffer.complete_next()
        return
    # An open menu is what the person sees, so it is not searched for again, which may be slow.
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
    """Open the menu of `found` with its first or last entry chosen, or with what all of them have in common."""
    common = "" if backwards else get_common_complete_suffix(buffer.document, found)
    if common:
        buffer.insert_text(common)
        found = [completion.new_completion_from_position(len(common)) for completion in found]
    buffer.complete_state = CompletionState(buffer.document, found)
    if not common:
        buffer.go_to_completion(len(found) - 1 if backwards else 0)
    buffer.on_completions_changed.fire()


def accept_completion(buffer: Buffer, chosen: Completion) -> None:
    """Close the menu with `chosen` in the input; the menu of a folder shows what is in it next."""
    buffer.complete_state = None
    if chosen.text.endswith("/"):
        buffer.start_completion()


def _find_within_wait(completer: Completer, document: Document) -> list[Completion] | None:
    """The completions, where they are found within PATIENCE_SECONDS."""
    found: list[Completion] = []

    def search() -> None:
        found.extend(completer.get_completions(document, CompleteEvent(completion_requested=True)))

    searching = threading.Thread(target=search, daemon=True)
    searching.start()
    searching.join(TAB_WAIT_SECONDS)
    return None if searching.is_alive() else found


class InputHistory(History):
    """What was typed in this chat and, from `file`, in others; with pastes in full, so that a search finds them.

    `pastes` says where they lie in each entry that has any.
    """

    def __init__(self, file: HistoryFile | None, folds: PasteFolds) -> None:
        super().__init__()
        self._file = file
        self._folds = folds
        self.pastes: dict[str, tuple[Span, ...]] = {}

    def load_history_strings(self) -> Iterable[str]:
        """What the file holds, newest first."""
        entries = self._file.entries() if self._file is not None else []
        self.pastes.update((entry.text, entry.pastes) for entry in entries if entry.pastes)
        return [entry.text for entry in reversed(entries)]

    def append_string(self, string: str) -> None:
        """Remember an input as it stood on the screen, unless it is the last one again."""
        entry = self._add_entry(string)
        if entry is not None:
            self.store_string(entry.text)

    def store_string(self, string: str) -> None:
        """Write an input, with pastes in full, to the file."""
        if self._file is not None:
            self._file.append(HistoryEntry(string, self.pastes.get(string, ())))

    def keep_unsent(self, string: str) -> None:
        """Remember an input that was given up, in this chat only."""
        self._add_entry(string)

    def fold(self, text: str) -> str:
        """`text` with its pastes folded, where it is an entry that has any."""
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
    """Suggests the rest of the line where all that is typed begins something typed before."""

    def __init__(self, history: InputHistory) -> None:
        self._history = history

    def get_suggestion(self, buffer: Buffer, document: Document) -> Suggestion | None:
        """The rest of the newest entry that begins so."""
        text = document.text
        if not text.strip():
            return None
        for entry in self._history.get_strings()[::-1]:
            if entry.startswith(text) and entry not in self._history.pastes:
                rest = entry[len(text) :].partition("\n")[0]
                if rest:
                    return Suggestion(rest)
        return None
