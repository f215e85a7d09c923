"""What happens where a prompt does not fit: `--overflow ask|error|drop|summarise`.

Where the prompt of a reply leaves less than an answer should have (`reserved_for_reply`), room is made or a person is
asked; with `error`, and without a person to ask, only what cannot be read is refused.
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
"""Reads a person's answer behind a sign. Raises EOFError, KeyboardInterrupt."""
StreamSummary = Callable[[StartReply], Done]
"""Streams a summary, of which a person sees the progress alone; its end."""


class OverflowHandler:
    """Makes prompts fit before the replies of `session`.

    `screen`: where it is said; `ask`: reads the person's answer, None where there is nobody; `on_reduced`: is told.
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
        """What is done; "error" where somebody should be asked and nobody is there."""
        policy = str(self._session.reply_settings["overflow"])
        return "error" if policy == "ask" and self._ask is None else policy

    def fit(self, reply: PendingReply, prompt: Prompt, play: StreamSummary) -> Prompt | None:
        """Return the prompt to send for `reply`: `prompt`, or one that leaves out old turns.

        Args:
            reply: the reply that is to be generated.
            prompt: its prompt with all turns.
            play: streams the summary of old turns.

        Returns:
            None if the person declined.

        Raises:
            ContextFullError, PromptTooLongError: it does not fit. Also what `play` raises.
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
        """One of the letters; "e" for Enter alone, Ctrl-C and Ctrl-D."""
        assert self._ask is not None, "the policy is error where nobody is asked"
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
        """Put a summary in place of old exchanges; return how many."""
        session = self._session
        count = context_budget.exchanges_to_summarise(session, reply.end, continuing=reply.continuing)
        self._screen.notice(f"summarising {context_budget.exchanges_text(count)}")

        def begin(cancel: Cancel) -> Reply:
            return context_budget.summarise(session, reply.end, count, cancel)

        done = play(begin)
        if done.finish_reason == "cancelled" or not done.text.strip():
            raise UsageError("there is no summary, so nothing was left out and the message was not sent")
        return count


def overflow_question(shortage: ContextShortage) -> tuple[str, str]:
    """What a person is asked, on one line, and the letters of the answers."""
    left = shortage.context - shortage.tokens
    text = (
        f"the prompt has {shortage.tokens:,} tokens, which leaves {left:,} of {shortage.context:,} for the answer"
        if shortage.fits
        else f"the prompt has {shortage.tokens:,} tokens and the context holds {shortage.context:,}"
    )
    offers = f"d drops {context_budget.exchanges_text(shortage.exchanges)}, s summarises"
    anyway = ", a answers anyway" if shortage.fits else ""
    return f"{text}: {offers}{anyway}, e goes back to the message", "dsae" if shortage.fits else "dse"
