"""The loop of the chat: read input, run a command or answer a message, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from qwchat.chat import commands, mentions
from qwchat.chat.active_constraint import unmet_constraint_message
from qwchat.chat.advice import error_message, format_argument
from qwchat.chat.attachments import Attachment
from qwchat.chat.context_budget import attachment_notices
from qwchat.chat.display import ThoughtDisplay
from qwchat.chat.editor import message_syntax
from qwchat.chat.editor.message_reader import MessageReader
from qwchat.chat.interrupts import Interrupts
from qwchat.chat.left_out_thought import left_out_notice
from qwchat.chat.overflow import OverflowHandler
from qwchat.chat.reply_stream import StartReply, show_reply
from qwchat.chat.session import PendingReply
from qwchat.chat.statistics import ending_notice
from qwchat.chat.view.prefill_status import PrefillStatus
from qwchat.chat.view.screen import Screen
from qwchat.chat.view.table import format_answer
from qwchat.conversation.reply_parts import is_unfinished_thought, reply_parts
from qwchat.errors import DamagedModelError, ModelError, NonFiniteLogitsError, PromptTooLongError, QwchatError
from qwchat.events import Done


@dataclass
class Chat:
    """A conversation on a terminal.

    Attributes:
        context: the session, and everything else that commands use.
        reader: reads the input of the user.
        screen: shows everything except replies (standard error).
        status: shows the progress of the prefill.
        interactive: whether a user types here; only then files mentioned in a message are read.
        draft: text that the next prompt starts with.
        interrupts: what stops a reply, or ends the chat.
        declined: whether the last message was not sent because it did not fit.
        overflow: makes prompts fit into the context.
        failure: the last error of the model. A damaged model ends the chat once all turns are saved.
        thoughts: shows the thoughts of replies; None if they are not shown.
    """

    context: commands.CommandContext
    reader: MessageReader
    screen: Screen
    status: PrefillStatus
    interactive: bool = True
    draft: str = ""
    interrupts: Interrupts = field(init=False)
    declined: bool = False
    overflow: OverflowHandler = field(init=False)
    failure: ModelError | None = None
    thoughts: ThoughtDisplay | None = None

    def __post_init__(self) -> None:
        self.interrupts = Interrupts(self.reader.watch_keys)
        self.overflow = OverflowHandler(
            self.context.session, self.screen, self.reader.ask if self.interactive else None
        )

    def run(self, first: str | None = None) -> None:
        """Answer `first`, if given, then everything that is typed, until the user leaves.

        Raises:
            KeyboardInterrupt: the user left with Ctrl-C twice within a second.
        """
        self.screen.spell = format_argument
        if first is not None:
            with self._flushing():
                self._send(mentions.ComposedMessage(first))
        while not isinstance(self.failure, DamagedModelError):
            try:
                draft, self.draft = self.draft, ""
                typed = self.reader.read(draft)
            except KeyboardInterrupt:
                if self.interrupts.note_ctrl_c():
                    raise
                self.screen.hint("press Ctrl-D or type /quit to leave")
                continue
            except EOFError:
                return
            with self._flushing():
                staying = not typed.strip() or self._handle(typed)
            if not staying:
                return

    @contextmanager
    def _flushing(self) -> Iterator[None]:
        """Save everything after one input was handled; only then let the user leave."""
        with self.interrupts.deferred():
            yield
            self.context.recorder.flush()
        if self.interrupts.leaving:
            raise KeyboardInterrupt

    def _handle(self, typed: str) -> bool:
        """Run a command or answer a message. Return False if the user wants to leave."""
        if self.interactive and message_syntax.is_exit_word(typed):  # In a pipe, the word is an ordinary message.
            return False
        try:
            command = commands.parse(typed)
            outcome = command[0].run(self.context, command[1]) if command else None
            message = None if command else self._compose(commands.message_text(typed))
        except QwchatError as error:
            self.screen.error(error_message(error))
            self.draft = "" if typed.startswith("/") else typed
            return True
        if message is not None:
            self._send(message, typed)
        elif isinstance(outcome, commands.Show):
            self._show(outcome)
        elif isinstance(outcome, commands.Draft):
            self.draft = outcome.text
        elif isinstance(outcome, commands.StreamReply):
            if outcome.hint is not None:
                self.screen.hint(outcome.hint)
            self._play(partial(self._reply, outcome.begin))
        elif isinstance(outcome, commands.StreamSummary):
            self.screen.hint(outcome.hint)
            self._play(partial(self._stream, outcome.begin))
        return not isinstance(outcome, commands.Quit)

    def _show(self, outcome: commands.Show) -> None:
        if text := format_answer(outcome.table, outcome.text):
            self.screen.answer(text)
        if outcome.hint:
            self.screen.hint(outcome.hint)
        if outcome.message is None:
            return
        if outcome.as_reply and self.context.view.is_terminal:
            self.context.view.write(outcome.message)
            self.context.view.end()
            self.screen.blank_line()
        else:
            self.screen.verbatim(outcome.message)

    def _compose(self, text: str) -> mentions.ComposedMessage:
        return mentions.compose(text) if self.interactive else mentions.ComposedMessage(text)

    def _send(self, message: mentions.ComposedMessage, typed: str = "") -> None:
        attached = self.context.attached
        for notice in message.notices:
            self.screen.notice(notice)
        ask = partial(self.context.session.ask, message.text_with_files(attached))
        if self._play(partial(self._reply, ask, [*attached, *message.attachments])):
            attached.clear()
        elif self.declined:
            self.draft = typed

    def _play(self, reply: Callable[[], Done | None]) -> bool:
        """Stream a reply and report how it ended. Return whether it was added to the conversation.

        `reply` returns None if the user declined to send the message.
        """
        session = self.context.session
        before, started = session.reply_count, time.monotonic()
        self.declined = False
        try:
            done = reply()
        except KeyboardInterrupt:
            self._report_stop(session.reply_count != before)
        except PromptTooLongError as error:
            self.screen.error(error_message(error))
            self.declined = True
        except DamagedModelError as error:
            self.failure = error  # The caller reports it: it knows how the model was made.
        except QwchatError as error:
            self.screen.error(error_message(error))
            self.failure = error if isinstance(error, NonFiniteLogitsError) else self.failure
        except MemoryError:
            self.screen.error("out of memory: set a smaller context with /set ctx N, or /clear the conversation")
        else:
            self.declined = done is None
            if done is not None:
                self._report_end(done, time.monotonic() - started, kept=session.reply_count != before)
        if self.interrupts.leaving:
            raise KeyboardInterrupt
        if self.interactive and not self.declined:
            self.screen.blank_line()
        return session.reply_count != before

    def _reply(self, ask: Callable[[], PendingReply], attached: Sequence[Attachment] = ()) -> Done | None:
        """Create a reply, make sure that its prompt fits, and stream it. Return None if the user declined."""
        session = self.context.session
        reply = ask()
        prompt = session.prompt(reply)
        for line in attachment_notices(session.model, attached, prompt):
            self.screen.notice(line)
        fitted = self.overflow.fit(reply, prompt, partial(self._stream, shown=False))
        if fitted is None:
            return None
        if (cost := left_out_notice(session, reply, fitted)) is not None:
            self.screen.notice(cost)
        already_shown = None if reply.continued is None else reply_parts(reply.continued).answer or None
        return self._stream(partial(session.stream, reply, fitted), already_shown=already_shown)

    def _stream(self, begin: StartReply, *, shown: bool = True, already_shown: str | None = None) -> Done:
        view = self.context.view if shown else None
        thoughts = self.thoughts if shown else None
        return show_reply(
            begin, view, self.status, interrupts=self.interrupts, already_shown=already_shown, thoughts=thoughts
        )

    def _report_end(self, done: Done, seconds: float, *, kept: bool) -> None:
        """Report how a reply ended."""
        used = self.context.session.last_settings
        if done.finish_reason == "cancelled":
            self._report_stop(kept)
        notice = ending_notice(done, used.max_tokens, chat=True)
        problem = unmet_constraint_message(done, used, used.max_tokens)
        if problem is not None:
            self.screen.error(problem)
        elif notice is not None:
            self.screen.notice(notice)
        self.screen.statistics(done, sampled=used.sampled)
        if done.finish_reason != "cancelled":
            self.screen.ring_bell(seconds)

    def _report_stop(self, kept: bool) -> None:
        if not kept:
            self.screen.hint("stopped; no tokens generated, /retry tries again")
        elif is_unfinished_thought(self.context.session.reply()):
            self.screen.hint("stopped while thinking; /continue resumes it")
        else:
            self.screen.hint("stopped; /continue resumes the reply")
