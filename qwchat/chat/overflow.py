"""What happens where a prompt does not fit: ``--overflow ask|error|drop|summarise``.

Before each reply the prompt is counted.  Where it leaves less than an answer should have (``kept_for_answer``), room is
made or a person is asked; with ``error``, and where there is nobody to ask, only what cannot be read is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from qwchat.chat import context
from qwchat.chat.context import ContextFullError, Room
from qwchat.chat.session import Session
from qwchat.chat.turn import Begin
from qwchat.chat.view.screen import Screen
from qwchat.errors import UsageError
from qwchat.events import Done

Ask = Callable[[str], str]
"""Reads a person's answer behind a sign. Raises EOFError, KeyboardInterrupt."""


class Play(Protocol):
    """Streams a reply; ``shown``: to the person, who sees its progress in any case."""

    def __call__(self, begin: Begin, *, shown: bool = True) -> Done:
        """Its end."""


class Overflow:
    """Makes room before replies of ``session``.

    ``screen``: where it is said; ``ask``: reads the person's answer, None where there is nobody; ``made``: is told.
    """

    def __init__(
        self, session: Session, screen: Screen, ask: Ask | None, made: Callable[[Room], None] | None = None
    ) -> None:
        self._session, self._screen, self._ask, self._made = session, screen, ask, made
        self._anyway = False
        session.check_room = self._check

    @property
    def policy(self) -> str:
        """What is done; "error" where somebody should be asked and nobody is there."""
        policy = str(self._session.controls["overflow"])
        return "error" if policy == "ask" and self._ask is None else policy

    def answer(self, begin: Begin, play: Play) -> Done | None:
        """Play the reply that ``begin`` starts, after making room where it takes some; None: the person declined.

        Raises ContextFullError, PromptTooLongError, and what ``play`` raises.
        """
        try:
            return play(begin)
        except ContextFullError as lack:
            if not self._make_room(lack, play):
                return None
        try:
            # What is there fits: a person has seen it, or no room is left to be made.
            self._anyway = True
            return play(self._again(begin))
        finally:
            self._anyway = False

    def _check(self, end: int | None, continuing: bool) -> None:
        generous = self.policy != "error" and not self._anyway
        context.check_room(self._session, end, continuing=continuing, generous=generous)

    def _again(self, begin: Begin) -> Begin:
        """The same reply: a question that stands in the tree already is not asked a second time."""
        tree = self._session.tree
        waiting = tree.head is not None and tree.node(tree.head).role == "user"
        return self._session.resume if waiting else begin

    def _make_room(self, lack: ContextFullError, play: Play) -> bool:
        policy = self.policy
        if policy == "error":
            raise lack
        if policy == "ask":
            letter = self._chosen(lack)
            if letter not in ("d", "s"):
                return letter == "a"
            policy = "drop" if letter == "d" else "summarise"
        if policy == "drop":
            room = context.drop(self._session, lack.end, continuing=lack.continuing)
        else:
            room = self._summarise(lack, play)
        self._screen.mark(room.line())
        if self._made is not None:
            self._made(room)
        return True

    def _chosen(self, lack: ContextFullError) -> str:
        """One of the letters; "e" for Enter alone, Ctrl-C and Ctrl-D."""
        assert self._ask is not None, "the policy is error where nobody is asked"
        said, letters = question(lack)
        self._screen.hint(said)
        while True:
            try:
                answer = self._ask(f"{'/'.join(letters)}: ").strip().lower() or "e"
            except (EOFError, KeyboardInterrupt):
                return "e"
            if answer in letters:
                return answer

    def _summarise(self, lack: ContextFullError, play: Play) -> Room:
        session = self._session
        count = context.summary_exchanges(session, lack.end, continuing=lack.continuing)
        self._screen.notice(f"summarising {context.exchanges_named(count)}")
        done = play(partial(context.summarise, session, lack.end, exchanges=count), shown=False)
        if done.finish_reason == "cancelled" or not done.text.strip():
            raise UsageError("there is no summary, so nothing was left out and the message was not sent")
        return context.summarised(session, lack.end, count, continuing=lack.continuing)


def question(lack: ContextFullError) -> tuple[str, str]:
    """What a person is asked, on one line, and the letters of the answers."""
    left = lack.context - lack.tokens
    said = (
        f"the prompt has {lack.tokens:,} tokens, which leaves {left:,} of {lack.context:,} for the answer"
        if lack.sendable
        else f"the prompt has {lack.tokens:,} tokens and the context holds {lack.context:,}"
    )
    offers = f"d drops {context.exchanges_named(lack.exchanges)}, s summarises"
    anyway = ", a answers anyway" if lack.sendable else ""
    return f"{said}: {offers}{anyway}, e goes back to the message", "dsae" if lack.sendable else "dse"
