"""Records a conversation in a saved session: opens the session, writes each event, closes it.

Only this module connects a conversation to the folder of a session. Code that stores more than events there (the KV
cache) registers with `on_fork`, `on_open`, `on_flush` and `on_close`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qwchat.conversation.session_file import SessionFile
from qwchat.conversation.session_store import SessionEntry, SessionStore
from qwchat.conversation.title import clean_line, title_from_question
from qwchat.conversation.tree import Event, Node, Tree
from qwchat.errors import SessionError

ChooseSession = Callable[[Sequence[SessionEntry]], SessionEntry | None]
"""Asks the user to choose a session; None if the user cancels."""
FolderHook = Callable[[Path], None]
"""Called with the folder of a session. Must not raise."""


class SessionRecorder:
    """Records one conversation after another as sessions of a store.

    The folder of a session is created with its first turn, so a chat that is closed unused leaves nothing behind.

    Args:
        store: where sessions are saved; None records nothing.
        warn: shows the user what went wrong while saving. The chat continues.

    Attributes:
        tree: the conversation that is being recorded.
        model: name of the current model, written into new sessions.
        fingerprint: fingerprint of its weights.
        created: when the session was created; "" until then.
        first_model: name of the model that the session was created with; "" for a new session.
        source_folder: folder of the saved session that was opened, also if nothing is recorded; None for a new one.
        on_fork: called when a session starts with turns of the previous one.
        on_open: called with its folder after a session was opened.
        on_flush: called with its folder after a turn ended and was written to disk.
        on_close: called with its folder before a session is closed, while it is still locked.
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
        """Id of the session; None until it is saved."""
        return None if self._file is None else self._file.folder.name

    @property
    def name(self) -> str:
        """Name of the saved session; "" if it has none or is not saved yet."""
        return "" if self._file is None else self._file.header.name

    @property
    def folder(self) -> Path | None:
        """Folder of the session; None until it is saved."""
        return None if self._file is None else self._file.folder

    @property
    def title(self) -> str:
        """The title that was set, or one made from the first message; "" in an empty conversation."""
        first = next((node.content for node in self.tree.nodes), "")
        return clean_line(self.tree.title or "") or title_from_question(first)

    def start(self, tree: Tree | None = None, name: str = "") -> Tree:
        """Close the session and start a new one.

        Args:
            tree: the conversation to record; empty if not given.
            name: of the new session.

        Returns:
            The conversation.
        """
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
        """Close the session, open a saved one and return its conversation.

        Without a store the saved session is only read: it is not changed, and may be open elsewhere.

        Raises:
            SessionError: the session cannot be opened. Nothing has changed then.
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
            lines = "1 damaged line" if content.invalid_lines == 1 else f"{content.invalid_lines} damaged lines"
            self._warn(f"session {entry.id}: skipped {lines}")
        for hook in self.on_open:
            hook(self.source_folder)
        return self.tree

    @property
    def last_model(self) -> str:
        """Name of the model of the last reply, or of the model that the session was created with."""
        last = self._last_reply()
        return clean_line(last.model_name or "") if last is not None and last.model_name else self.first_model

    def set_model(self, model: str, fingerprint: str) -> str | None:
        """Set the model that replies from now on. Return a notice if the last reply came from another model."""
        self.model, self.fingerprint = model, fingerprint
        last = self._last_reply()
        if last is None or last.model == fingerprint:
            return None
        other = self.last_model or last.model
        return f"the last reply came from another model ({other}): {model} evaluates the conversation again"

    def _last_reply(self) -> Node | None:
        return next((node for node in reversed(self.tree.path()) if node.model is not None), None)

    def flush(self) -> None:
        """Write everything to disk, or tell the user that it failed."""
        self._save()
        if self._file is not None and not self._is_failing:
            self._attempt(self._file.sync)
        if self._file is not None:
            for hook in self.on_flush:
                hook(self._file.folder)

    def close(self) -> None:
        """Write what is pending and release the session."""
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
                self._warn(f"another process created a session {self._name}: this one is {self.id}, without a name")
        if self._file is not None:
            events, self._pending = self._pending, []  # The file keeps what it cannot write and retries.
            self._file.append(events)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Run an action that may fail. Report an error once, until an action succeeds again."""
        try:
            action()
        except SessionError as error:
            if not self._is_failing:
                self._warn(f"{error}; the chat continues, and saving is retried after every turn")
            self._is_failing = True
        else:
            self._is_failing = False
