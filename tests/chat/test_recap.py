"""Messages as the user typed them, without attached files."""

from __future__ import annotations

from tests.chat.test_turn_commands import make, shown, stream


def test_messages_are_shown_as_typed_without_their_files() -> None:
    _, context = make("One.", "Two.")
    file = "File src/a.c++, lines 1-2:\n\n````c++\nx\n```\ny\n````\n\nFile b.md: empty\n\n"
    stream(context, f"{file}what is x")
    stream(context, f"/edit 1 {file}what is y?\nAnd z?\nAnd why?")
    assert shown(context, "/alt") == "message 1 of 2: what is x\nOne."
    assert shown(context, "/alt") == "message 2 of 2: what is y? … (+2 lines)\nTwo."
    stream(context, "next")
    assert shown(context, "/undo").startswith("undid “next”")
    assert shown(context, "/undo").startswith("undid “what is y? And z? And why?”")
