"""Commands about what is said: answer again, forget."""

from __future__ import annotations

from qwchat.chat.commands.base import Command, Desk, Outcome, Play, Show


def _clear(desk: Desk, argument: str) -> Outcome:
    desk.session.clear()
    return Show("the conversation is forgotten")


def _retry(desk: Desk, argument: str) -> Outcome:
    session = desk.session
    hint = (
        None if session.controls.sampled else "temp is 0, so the answer will be the same: /set temp 0.7 lets chance in"
    )
    return Play(session.retry, hint)


COMMANDS: tuple[Command, ...] = (
    Command("retry", "", "answer the last question again", _retry),
    Command("clear", "", "forget the conversation", _clear),
)
