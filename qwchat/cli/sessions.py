"""`qwchat sessions`: list, show, search, remove and export saved conversations."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict

from qwchat.characters import sanitise
from qwchat.chat.formatting import one_line
from qwchat.chat.view.table import format_pairs
from qwchat.cli.confirmation import confirm
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.session_options import (
    SessionsExportOptions,
    SessionsGrepOptions,
    SessionsListOptions,
    SessionsRemoveOptions,
    SessionsShowOptions,
)
from qwchat.cli.streams import Streams, stdin_is_terminal
from qwchat.cli.tables import Column, TableWriter
from qwchat.conversation.export import Transcript, as_json, as_markdown, export_transcript, format_of
from qwchat.conversation.session_file import FILE_NAME, SessionContent
from qwchat.conversation.session_store import SessionEntry, SessionStore
from qwchat.errors import SessionError, UsageError
from qwchat.markdown.styles import BOLD
from qwchat.text_files import write_atomically

_CONTEXT_CHARACTERS = 100  # shown of a long line on each side of a match

_COLUMNS = (
    Column("id", style="bold"),
    Column("last used", drop=3),
    Column("messages", right=True, drop=1),
    Column("model", wrap=10, drop=2),
    Column("title", wrap=16),
)


def list_all(options: SessionsListOptions, dependencies: Dependencies) -> int:
    """List the sessions, the latest first."""
    streams, store = Streams(), SessionStore()
    entries = store.entries()
    if options.json:
        streams.write(
            json_line({"folder": str(store.folder), "sessions": [_entry_fields(entry) for entry in entries]}) + "\n"
        )
        return ExitCode.OK
    if not entries:
        streams.screen.hint(f"there are no sessions in {store.folder}")
        return ExitCode.OK
    rows = [(entry.id, entry.changed_local, str(entry.messages), entry.model or "-", entry.label) for entry in entries]
    tables = TableWriter(streams)
    tables.write(tables.table(_COLUMNS, rows))
    return ExitCode.OK


def show(options: SessionsShowOptions, dependencies: Dependencies) -> int:
    """Show the details of a session and its messages."""
    streams, store = Streams(quiet=options.quiet), SessionStore()
    entry = store.find(options.session)
    content = _read(store, entry, streams)
    transcript = _transcript(entry, content)
    if options.json:
        streams.write(as_json(transcript))
        return ExitCode.OK
    header = content.header
    model = f"{entry.model} ({header.fingerprint})" if header is not None and header.fingerprint else entry.model
    facts = [
        ("session", entry.id),
        ("name", entry.name),
        ("title", entry.title),
        ("model", model),
        ("created", entry.created),
        ("last used", entry.changed_local),
        ("messages", str(entry.messages)),
        ("file", str(store.folder / entry.id / FILE_NAME)),
    ]
    text = format_pairs([(name, value) for name, value in facts if value]) + "\n"
    streams.write(text + "\n" + as_markdown(transcript) if content.tree.path() else text)
    return ExitCode.OK


def grep(options: SessionsGrepOptions, dependencies: Dependencies) -> int:
    """Print matching lines with their session and message. Return 1 if no line matches."""
    streams, store = Streams(quiet=options.quiet), SessionStore()
    pattern = _pattern(options)
    entries = store.entries() if options.session is None else [store.find(options.session)]
    found = []
    for entry in entries:
        for message, role, match in _matches(store, entry, pattern, streams):
            if options.json:
                found.append(
                    {"session": entry.id, "title": entry.title, "message": message, "role": role, "line": match.string}
                )
                continue
            found.append({})
            before, after = match.string[: match.start()], match.string[match.end() :]
            before = before if len(before) <= _CONTEXT_CHARACTERS else "…" + before[-_CONTEXT_CHARACTERS:]
            after = after if len(after) <= _CONTEXT_CHARACTERS else after[:_CONTEXT_CHARACTERS] + "…"
            hit = streams.out_styling.styled(sanitise(match[0]), BOLD)
            streams.write_styled(f"{entry.id}:{message}:{role}: {sanitise(before)}{hit}{sanitise(after)}\n")
    if options.json:
        streams.write(json_line({"matches": found}) + "\n")
    return ExitCode.OK if found else ExitCode.RUNTIME


def remove(options: SessionsRemoveOptions, dependencies: Dependencies) -> int:
    """Remove sessions after asking for confirmation. Raises UsageError if standard input is not a terminal."""
    streams, store = Streams(quiet=options.quiet), SessionStore()
    entries = list({entry.id: entry for entry in map(store.find, options.sessions)}.values())
    if not options.yes:
        if not stdin_is_terminal():
            raise UsageError(
                "sessions rm needs a terminal to ask for confirmation: give --yes to remove without asking"
            )
        for entry in entries:
            streams.screen.hint(f"{entry.id}  {entry.label}, {entry.messages} messages")
        if not confirm(streams, "remove it?" if len(entries) == 1 else f"remove these {len(entries)}?"):
            streams.screen.hint("nothing removed")
            return ExitCode.OK
    for entry in entries:
        store.remove(entry.id)
        streams.screen.notice(f"removed {entry.id} ({entry.label})")
    return ExitCode.OK


def export(options: SessionsExportOptions, dependencies: Dependencies) -> int:
    """Write a session to a file or to standard output."""
    streams, store = Streams(quiet=options.quiet), SessionStore()
    entry = store.find(options.session)
    content = _read(store, entry, streams)
    path = options.file if options.file is None or str(options.file) != "-" else None
    form = options.form or ("md" if path is None else format_of(path))
    text = export_transcript(_transcript(entry, content), form)
    if path is None:
        streams.write(text)
        return ExitCode.OK
    if path.exists() and not options.force:
        raise UsageError(f"{path} already exists: choose another name, or give --force")
    write_atomically(path, text, overwrite=options.force)
    streams.screen.notice(f"wrote {entry.id} to {path}")
    return ExitCode.OK


def _entry_fields(entry: SessionEntry) -> dict[str, object]:
    return asdict(entry) | {"changed": entry.changed_utc}


def _read(store: SessionStore, entry: SessionEntry, streams: Streams) -> SessionContent:
    content = store.read(entry.id)
    if content.invalid_lines:
        lines = "1 damaged line" if content.invalid_lines == 1 else f"{content.invalid_lines} damaged lines"
        streams.screen.notice(f"session {entry.id}: skipped {lines}")
    return content


def _transcript(entry: SessionEntry, content: SessionContent) -> Transcript:
    return Transcript(content.tree, entry.model, entry.id, entry.created)


def _pattern(options: SessionsGrepOptions) -> re.Pattern[str]:
    text = re.escape(options.pattern) if options.fixed else options.pattern
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About syntax that a later Python may interpret differently.
            return re.compile(text, re.IGNORECASE if options.ignore_case else 0)
    except (re.error, OverflowError, RecursionError) as error:  # Too large a count; too deep a nesting.
        shown = one_line(options.pattern)
        raise UsageError(
            f"{shown!r} is not a regular expression ({error}): give -F to search for it as text"
        ) from error


def _matches(
    store: SessionStore, entry: SessionEntry, pattern: re.Pattern[str], streams: Streams
) -> Iterator[tuple[int, str, re.Match[str]]]:
    """Yield message id, role and first match for each line that matches."""
    try:
        content = _read(store, entry, streams)
    except SessionError as error:
        streams.screen.error(str(error))
        return
    for node in content.tree.nodes:
        for line in node.content.splitlines():
            match = pattern.search(line)
            if match is not None:
                yield node.id, node.role, match
