"""Commands about what fills the context: files that go along."""

from __future__ import annotations

from collections.abc import Iterable

from qwchat.chat import attachments, mentions
from qwchat.chat.commands.base import Command, Desk, Outcome, Show
from qwchat.chat.suggestions import Suggestion


def _file(desk: Desk, argument: str) -> Outcome:
    encode = desk.session.model.encode
    if argument == "none":
        desk.attached.clear()
        return Show("no file goes with the next message")
    remarks: tuple[str, ...] = ()
    if argument:
        found = attachments.read(mentions.unquoted(argument))
        desk.attached += [attachment for attachment in found.attachments if attachment not in desk.attached]
        remarks = found.remarks
    if not desk.attached:
        return Show("no file goes with the next message: /file PATH takes one along")
    counted = [(attachment, len(encode(attachment.block()))) for attachment in desk.attached]
    lines = [*remarks, *attachments.listing(counted), f"{attachments.total(counted)}: with the next message"]
    return Show("\n".join(lines))


def _paths(desk: Desk, typed: str) -> Iterable[Suggestion]:
    for suggestion in mentions.suggestions(f"@{typed}"):
        yield Suggestion(suggestion.text.removeprefix("@"), suggestion.replaced - 1)


COMMANDS: tuple[Command, ...] = (
    Command(
        "file",
        "[PATH]",
        "take a file along with the next message (none: no file)",
        _file,
        details="PATH may be a pattern (src/**/*.py) and may end in lines (notes.md:10-80). In a message @PATH does\n"
        'the same: @src/app.py:10-80, @"two words.txt". @@ writes a plain @ where a file of that name exists.',
        complete=_paths,
    ),
)
