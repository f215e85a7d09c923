"""The saved session behind a conversation: opened here, written event by event, left here.

This is the one place that attaches a conversation to a session's folder. Whoever keeps more than events there (the KV
cache) registers with `on_fork`, `on_open`, `on_flush` and `on_close`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qwchat.conversation.session_file import SessionFile
from qwchat.conversation.session_store import SessionEntry, SessionStore
from qwchat.conversation.title import clean_line, title_from_question
from qwchat.conversation.tree import Event, Tree
from qwchat.errors import SessionError

ChooseSession = Callable[[Sequence[SessionEntry]], SessionEntry | None]
"""Lets a person choose one of several sessions; None where none is wanted."""
FolderHook = Callable[[Path], None]
"""Told the folder of a session; raises nothing."""


class SessionRecorder:
    """Keeps one conversation after another in sessions of the store.

    A session's folder appears with the first turn, so that opening and leaving a chat leaves no trace.

    Args:
        store: where sessions are; None keeps nothing.
        warn: shows a person what went wrong while saving. The chat goes on.

    Attributes:
        tree: the conversation that is being kept.
        model: name of the model that replies, written into new sessions.
        fingerprint: of its weights.
        created: when the session began, "" before it did.
        first_model: name of the model that it began with, "" for a new session.
        source_folder: folder of the saved session that goes on, also where nothing is kept; None for a new one.
        on_fork: called when a session begins with turns of the one that was left.
        on_open: called when a session was opened, with its folder.
        on_flush: called with its folder when a turn has ended and is on the disk.
        on_close: called before a session is closed, with its folder; it is still locked.
    """

    def __init__(self, store: SessionStore | None = None, warn: Callable[[str], None] = lambda text: None) -> None:
        self.store = store
        self.model = ""
        self.fingerprint = ""
        self.created = ""
        self.first_model = ""
        self.source_folder: Path | None = None
        self.on_fork: list[Callable[[], None]] = []
        self.on_open: list[FolderHook] = []
        self.on_flush: list[FolderHook] = []
        self.on_close: list[FolderHook] = []
        self._warn = warn
        self._name = ""
        self._file: SessionFile | None = None
        self._pending: list[Event] = []
        self._is_failing = False
        self.start()

    @property
    def id(self) -> str | None:
        """The session's id; None while nothing is saved."""
        return None if self._file is None else self._file.folder.name

    @property
    def name(self) -> str:
        """The name under which the session is saved; "" while nothing is saved and where it has no name."""
        return "" if self._file is None else self._file.header.name

    @property
    def folder(self) -> Path | None:
        """The session's folder; None while nothing is saved."""
        return None if self._file is None else self._file.folder

    @property
    def title(self) -> str:
        """What the session is called, or what it would be; "" before a word."""
        first = next((node.content for node in self.tree.nodes), "")
        return clean_line(self.tree.title or "") or title_from_question(first)

    def start(self, tree: Tree | None = None, name: str = "") -> Tree:
        """Leave the session, and keep `tree` (empty if not given) in a new one called `name`; the tree."""
        self.close()
        self.tree = Tree() if tree is None else tree
        self._name, self.created, self.first_model, self.source_folder = name, "", "", None
        self._pending = list(self.tree.events())
        self.tree.listener = self._record_event
        if self.tree.nodes:
            self._save()
            for notify in self.on_fork:
                notify()
        return self.tree

    def open(self, entry: SessionEntry) -> Tree:
        """Leave the session and go on with a saved one; its conversation.

        Where nothing is kept, the saved session stays as it is, and may be open elsewhere. Raises SessionError: then
        nothing has changed.
        """
        store = SessionStore() if self.store is None else self.store
        if self.store is None:
            file, content = None, store.read(entry.id)
        else:
            file, content = store.open(entry.id)
        self.close()
        self._file, self.tree, self._pending, self._name = file, content.tree, [], entry.name
        self.created, self.first_model, self.source_folder = entry.created, entry.model, store.folder / entry.id
        self.tree.listener = self._record_event
        if content.invalid_lines:
            self._warn(f"damaged lines of session {entry.id} that are left out: {content.invalid_lines}")
        for hook in self.on_open:
            hook(self.source_folder)
        return self.tree

    def set_model(self, model: str, fingerprint: str) -> str | None:
        """Name the model that replies from now on; what to tell a person where another one did before."""
        self.model, self.fingerprint = model, fingerprint
        before = next((node.model for node in reversed(self.tree.path()) if node.model is not None), None)
        if before in (None, fingerprint):
            return None
        return f"the last reply was another model's ({self.first_model or before}): {model} reads the conversation anew"

    def flush(self) -> None:
        """Return when everything said so far is on the disk, or the person knows that it is not."""
        self._save()
        if self._file is not None and not self._is_failing:
            self._attempt(self._file.sync)
        if self._file is not None:
            for hook in self.on_flush:
                hook(self._file.folder)

    def close(self) -> None:
        """Write what waits, and let go of the session."""
        if self._file is None:
            return
        self.flush()
        for hook in self.on_close:
            hook(self._file.folder)
        self._file.close()
        self._file = None

    def _record_event(self, event: Event) -> None:
        if self.store is None:
            return
        self._pending.append(event)
        if self._file is not None or "node" in event:
            self._save()

    def _save(self) -> None:
        if self.store is not None and (self._file is not None or self.tree.nodes):
            self._attempt(self._write)

    def _write(self) -> None:
        if self._file is None and self.store is not None:
            self._file = self.store.create(self.model, self.fingerprint, self._name)
            self.created = self._file.header.created
            if self._file.header.name != self._name:
                self._warn(f"a session {self._name} was begun elsewhere: this one is {self.id}, without a name")
        if self._file is not None:
            events, self._pending = self._pending, []  # What cannot be written waits in the file's care.
            self._file.append(events)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do what may fail, and say so once until it works again."""
        try:
            action()
        except SessionError as error:
            if not self._is_failing:
                self._warn(f"{error}; the chat goes on, and saving is tried again with every turn")
            self._is_failing = True
        else:
            self._is_failing = False
