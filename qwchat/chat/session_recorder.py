"""The saved session behind a conversation: opened here, written event by event, left here.

This is the one place that attaches a conversation to a session's folder. Whoever keeps more than events there (the KV
cache) registers with `on_fork`, `on_open`, `on_settle` and `on_leave`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qwchat.conversation.files import SessionFile
from qwchat.conversation.store import Entry, Store
from qwchat.conversation.title import clean, of_question
from qwchat.conversation.tree import Event, Tree
from qwchat.errors import SessionError

ChooseSession = Callable[[Sequence[Entry]], Entry | None]
"""Lets a person choose one of several sessions; None where none is wanted."""
FolderHook = Callable[[Path], None]
"""Told the folder of a session; raises nothing."""


class SessionRecorder:
    """Keeps one conversation after another in sessions of the store.

    A session's folder appears with the first turn, so that opening and leaving a chat leaves no trace.

    Args:
        store: where sessions are; None keeps nothing.
        tell: shows a person what went wrong while saving. The chat goes on.

    Attributes:
        tree: the conversation that is being kept.
        model: name of the model that replies, written into new sessions.
        fingerprint: of its weights.
        created: when the session began, "" before it did.
        held_with: name of the model that it began with, "" for a new session.
        origin: folder of the saved session that goes on, also where nothing is kept; None for a new one.
        on_fork: called when a session begins with turns of the one that was left.
        on_open: called when a session was opened, with its folder.
        on_settle: called with its folder when a turn has ended and is on the disk.
        on_leave: called before a session is closed, with its folder; it is still locked.
    """

    def __init__(self, store: Store | None = None, tell: Callable[[str], None] = lambda text: None) -> None:
        self.store = store
        self.model = ""
        self.fingerprint = ""
        self.created = ""
        self.held_with = ""
        self.origin: Path | None = None
        self.on_fork: list[Callable[[], None]] = []
        self.on_open: list[FolderHook] = []
        self.on_settle: list[FolderHook] = []
        self.on_leave: list[FolderHook] = []
        self._tell = tell
        self._name = ""
        self._file: SessionFile | None = None
        self._waiting: list[Event] = []
        self._in_trouble = False
        self.begin()

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
        return clean(self.tree.title or "") or of_question(first)

    def begin(self, tree: Tree | None = None, name: str = "") -> Tree:
        """Leave the session, and keep `tree` (empty if not given) in a new one called `name`; the tree."""
        self.leave()
        self.tree = Tree() if tree is None else tree
        self._name, self.created, self.held_with, self.origin = name, "", "", None
        self._waiting = list(self.tree.events())
        self.tree.listener = self._note
        if self.tree.nodes:
            self._save()
            for tell in self.on_fork:
                tell()
        return self.tree

    def open(self, entry: Entry) -> Tree:
        """Leave the session and go on with a saved one; its conversation.

        Where nothing is kept, the saved session stays as it is, and may be open elsewhere. Raises SessionError: then
        nothing has changed.
        """
        store = Store() if self.store is None else self.store
        if self.store is None:
            file, content = None, store.read(entry.id)
        else:
            file, content = store.open(entry.id)
        self.leave()
        self._file, self.tree, self._waiting, self._name = file, content.tree, [], entry.name
        self.created, self.held_with, self.origin = entry.created, entry.model, store.folder / entry.id
        self.tree.listener = self._note
        if content.left_out:
            self._tell(f"damaged lines of session {entry.id} that are left out: {content.left_out}")
        for visit in self.on_open:
            visit(self.origin)
        return self.tree

    def answers(self, model: str, fingerprint: str) -> str | None:
        """Name the model that replies from now on; what to tell a person where another one did before."""
        self.model, self.fingerprint = model, fingerprint
        before = next((node.model for node in reversed(self.tree.path()) if node.model is not None), None)
        if before in (None, fingerprint):
            return None
        return f"the last reply was another model's ({self.held_with or before}): {model} reads the conversation anew"

    def settle(self) -> None:
        """Return when everything said so far is on the disk, or the person knows that it is not."""
        self._save()
        if self._file is not None and not self._in_trouble:
            self._guarded(self._file.sync)
        if self._file is not None:
            for visit in self.on_settle:
                visit(self._file.folder)

    def leave(self) -> None:
        """Write what waits, and let go of the session."""
        if self._file is None:
            return
        self.settle()
        for visit in self.on_leave:
            visit(self._file.folder)
        self._file.close()
        self._file = None

    def _note(self, event: Event) -> None:
        if self.store is None:
            return
        self._waiting.append(event)
        if self._file is not None or "node" in event:
            self._save()

    def _save(self) -> None:
        if self.store is not None and (self._file is not None or self.tree.nodes):
            self._guarded(self._write)

    def _write(self) -> None:
        if self._file is None and self.store is not None:
            self._file = self.store.create(self.model, self.fingerprint, self._name)
            self.created = self._file.header.created
            if self._file.header.name != self._name:
                self._tell(f"a session {self._name} was begun elsewhere: this one is {self.id}, without a name")
        if self._file is not None:
            events, self._waiting = self._waiting, []  # What cannot be written waits in the file's care.
            self._file.append(events)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do what may fail, and say so once until it works again."""
        try:
            action()
        except SessionError as error:
            if not self._in_trouble:
                self._tell(f"{error}; the chat goes on, and saving is tried again with every turn")
            self._in_trouble = True
        else:
            self._in_trouble = False
