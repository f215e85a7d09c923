"""The conversation loop: read, answer or obey, again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

from qwchat.chat import commands, mentions
from qwchat.chat.context import announce
from qwchat.chat.editor import Reader
from qwchat.chat.interrupts import Interrupts
from qwchat.chat.shape import complaint
from qwchat.chat.turn import Begin, play
from qwchat.chat.view.screen import Screen
from qwchat.chat.view.statistics import ending_notice
from qwchat.chat.view.status import PrefillStatus
from qwchat.errors import QwchatError


@dataclass
class Chat:
    """A conversation on a terminal.

    Attributes:
        desk: the session and what commands need besides.
        reader: where the person types.
        screen: where everything else goes (standard error).
        status: progress through a long prompt.
        interactive: a person types here, so that a file mentioned in a message is read.
        draft: what the next prompt begins with.
        interrupts: what stops a reply, and the chat.
    """

    desk: commands.Desk
    reader: Reader
    screen: Screen
    status: PrefillStatus
    interactive: bool = True
    draft: str = ""
    interrupts: Interrupts = field(init=False)

    def __post_init__(self) -> None:
        self.interrupts = Interrupts(self.reader.watching)

    def run(self, first: str | None = None) -> None:
        """Answer ``first`` where there is one, then whatever is typed, until the person leaves.

        Raises KeyboardInterrupt where the person leaves with Ctrl-C twice within a second.
        """
        if first is not None:
            self._say(mentions.Composed(first))
            self.desk.saved.settle()
        while True:
            try:
                draft, self.draft = self.draft, ""
                typed = self.reader.read(draft)
            except KeyboardInterrupt:
                if self.interrupts.pressed():
                    raise
                self.screen.hint("Ctrl-D or /quit leaves")
                continue
            except EOFError:
                return
            staying = not typed.strip() or self._take(typed)
            self.desk.saved.settle()
            if not staying:
                return

    def _take(self, typed: str) -> bool:
        """Obey or answer one input; False where it says to leave."""
        try:
            command = commands.parse(typed)
            outcome = command[0].run(self.desk, command[1]) if command else None
            said = None if command else self._composed(commands.message_text(typed))
        except QwchatError as error:
            self.screen.error(str(error))
            self.draft = "" if typed.startswith("/") else typed
            return True
        if said is not None:
            self._say(said)
        elif isinstance(outcome, commands.Show):
            self.screen.answer(outcome.text)
        elif isinstance(outcome, commands.Draft):
            self.draft = outcome.text
        elif isinstance(outcome, commands.Play):
            if outcome.hint is not None:
                self.screen.hint(outcome.hint)
            self._play(outcome.begin)
        return not isinstance(outcome, commands.Quit)

    def _composed(self, text: str) -> mentions.Composed:
        return mentions.compose(text) if self.interactive else mentions.Composed(text)

    def _say(self, said: mentions.Composed) -> None:
        session, attached = self.desk.session, self.desk.attached
        question = said.message(attached)
        for remark in said.remarks:
            self.screen.notice(remark)
        announce(self.screen, session, [*attached, *said.attachments], question)
        if self._play(partial(session.ask, question)):
            attached.clear()

    def _play(self, begin: Begin) -> bool:
        """Play a reply; whether it entered the conversation."""
        session = self.desk.session
        before, started = session.revision, time.monotonic()
        try:
            done = play(begin, self.desk.view, self.status, interrupts=self.interrupts)
        except KeyboardInterrupt:
            self._stopped(session.revision != before)
        except QwchatError as error:
            self.screen.error(str(error))
        except MemoryError:
            self.screen.error("out of memory: ask for a shorter context with --ctx, or /clear the conversation")
        else:
            if done.finish_reason == "cancelled":
                self._stopped(session.revision != before)
            notice = ending_notice(done, session.used.max_tokens, chat=True)
            unmet = complaint(done, session.used, session.used.max_tokens)
            if unmet is not None:
                self.screen.error(unmet)
            elif notice is not None:
                self.screen.notice(notice)
            self.screen.statistics(done, sampled=session.used.sampled)
            if done.finish_reason != "cancelled":
                self.screen.ring(time.monotonic() - started)
        if self.interrupts.leaving:
            raise KeyboardInterrupt
        return session.revision != before

    def _stopped(self, kept: bool) -> None:
        self.screen.hint(
            "stopped; what was said is kept, /continue goes on"
            if kept
            else "stopped before a word was said; /retry asks again"
        )
