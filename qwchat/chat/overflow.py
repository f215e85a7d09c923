"""What to do if a prompt leaves too few tokens for the reply: the setting `overflow` (ask, error, drop, summarise).

If a prompt leaves fewer tokens than are reserved for a reply (`reserved_for_reply`), old turns are dropped or
summarised, or the user is asked. With `error`, and if no user can be asked, only a prompt that does not fit at all is
refused.
"""

from __future__ import annotations

from collections.abc import Callable

from qwchat.chat import context_budget
from qwchat.chat.chat_model import Cancel
from qwchat.chat.context_budget import ContextFullError, ContextReduction, ContextShortage
from qwchat.chat.display import Notices
from qwchat.chat.reply_stream import StartReply
from qwchat.chat.session import PendingReply, Reply, Session
from qwchat.errors import UsageError
from qwchat.events import Done
from qwchat.request import Prompt

AskUser = Callable[[str], str]
"""Shows a prompt and reads the user's answer. Raises EOFError, KeyboardInterrupt."""
StreamSummary = Callable[[StartReply], Done]
"""Streams a summary, showing only its progress, and returns its end."""


class OverflowHandler:
    """Makes the prompts of a session fit into the context.

    Args:
        session: the conversation.
        screen: where notices and questions are shown.
        ask: reads the user's answer; None if no user can be asked.
        on_reduced: called after old turns were dropped or summarised.
    """

    def __init__(
        self,
        session: Session,
        screen: Notices,
        ask: AskUser | None,
        on_reduced: Callable[[ContextReduction], None] | None = None,
    ) -> None:
        self._session, self._screen, self._ask, self._on_reduced = session, screen, ask, on_reduced

    @property
    def policy(self) -> str:
        """The setting `overflow`; "error" instead of "ask" if no user can be asked."""
        policy = str(self._session.reply_settings["overflow"])
        return "error" if policy == "ask" and self._ask is None else policy

    def fit(self, reply: PendingReply, prompt: Prompt, play: StreamSummary) -> Prompt | None:
        """Return the prompt to send for `reply`: `prompt`, or one without old turns.

        Args:
            reply: the pending reply.
            prompt: its prompt with all turns.
            play: streams the summary of old turns.

        Returns:
            The prompt; None if the user declined.

        Raises:
            ContextFullError, PromptTooLongError: it does not fit. Errors of `play` are passed on.
        """
        policy = self.policy
        shortage = context_budget.find_shortage(self._session, reply, prompt, with_reserve=policy != "error")
        if shortage is None:
            return prompt
        if policy == "error":
            raise ContextFullError(shortage)
        if policy == "ask":
            letter = self._ask_choice(shortage)
            if letter not in ("d", "s"):
                return prompt if letter == "a" else None
            policy = "drop" if letter == "d" else "summarise"
        if policy == "drop":
            how, count = "dropped", context_budget.drop(self._session, reply.end, shortage.exchanges)
            shorter = shortage.shorter
        else:
            how, count = "summarised", self._summarise(reply, play)
            shorter = self._session.prompt(reply)
        self._announce(context_budget.measure_reduction(how, self._session, reply.end, count, shorter))
        shortage = context_budget.find_shortage(self._session, reply, shorter, with_reserve=False)
        if shortage is not None:
            raise ContextFullError(shortage)
        return shorter

    def _announce(self, reduction: ContextReduction) -> None:
        self._screen.mark(reduction.marker())
        if self._on_reduced is not None:
            self._on_reduced(reduction)

    def _ask_choice(self, shortage: ContextShortage) -> str:
        """Return the letter that the user chose; "e" for Enter, Ctrl-C and Ctrl-D."""
        assert self._ask is not None, "without a user to ask, the policy is error"
        text, letters = overflow_question(shortage)
        self._screen.hint(text)
        while True:
            try:
                answer = self._ask(f"{'/'.join(letters)}: ").strip().lower() or "e"
            except (EOFError, KeyboardInterrupt):
                return "e"
            if answer in letters:
                return answer

    def _summarise(self, reply: PendingReply, play: StreamSummary) -> int:
        """Replace old exchanges with a summary. Return how many."""
        session = self._session
        count = context_budget.exchanges_to_summarise(session, reply.end, continuing=reply.continuing)
        self._screen.notice(f"summarising {context_budget.exchanges_text(count)}")

        def begin(cancel: Cancel) -> Reply:
            return context_budget.summarise(session, reply.end, count, cancel)

        done = play(begin)
        if done.finish_reason == "cancelled" or not done.text.strip():
            raise UsageError("no summary was generated, so nothing was dropped and the message was not sent")
        return count


def overflow_question(shortage: ContextShortage) -> tuple[str, str]:
    """Return the question for the user, on one line, and the letters of the possible answers."""
    left = shortage.context - shortage.tokens
    text = (
        f"the prompt has {shortage.tokens:,} tokens, leaving {left:,} of {shortage.context:,} for the reply"
        if shortage.fits
        else f"the prompt has {shortage.tokens:,} tokens and the context holds {shortage.context:,}"
    )
    offers = f"[d]rop {context_budget.exchanges_text(shortage.exchanges)}, [s]ummarise"
    anyway = ", [a]nswer anyway" if shortage.fits else ""
    return f"{text}: {offers}{anyway}, [e]dit the message", "dsae" if shortage.fits else "dse"
