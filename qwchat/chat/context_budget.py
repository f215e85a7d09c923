"""The context budget: how many tokens are used, and how to free some by dropping or summarising old exchanges.

An exchange is a message of the user with all turns up to the next one. Turns stay in the conversation: the tree records
which ones are not sent any more (`qwchat.conversation.tree.Tree.drop`), and a resumed session knows it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from qwchat.chat.attachments import Attachment, file_lines, files_total
from qwchat.chat.chat_model import Cancel, ChatModel
from qwchat.chat.session import PendingReply, Reply, Session
from qwchat.conversation.tree import Node
from qwchat.errors import PromptTooLongError, QwchatError, UsageError
from qwchat.events import Done
from qwchat.messages import Message
from qwchat.request import Prompt, Request

_REPLY_SHARE = 8  # An eighth of the context is reserved for the reply,
_MAX_RESERVED = 512  # but at most 512 tokens.
_FREE_SHARE = 4  # Dropping turns frees a quarter of the context, so that the next messages fit as well.
_MAX_SUMMARY_TOKENS = 256
_INSTRUCTION = (
    "Summarise our conversation so far in at most {words} words, so that we can go on from your summary alone. "
    "Keep names, numbers, decisions, open questions and what I asked you to remember. Write the summary only."
)
_SUMMARY_HEADING = "Summary of the earlier conversation:\n\n"
_NOTHING_TO_DROP = "there are no exchanges before the last one: /clear removes that one too"


@dataclass(frozen=True)
class ContextShortage:
    """A prompt that leaves too few tokens for the reply, although dropping old turns would help.

    Attributes:
        tokens: length of the prompt.
        context: size of the context window.
        longest: the longest context window that the model supports.
        exchanges: how many old exchanges have to be dropped.
        shorter: the prompt without them.
    """

    tokens: int
    context: int
    longest: int
    exchanges: int
    shorter: Prompt

    @property
    def fits(self) -> bool:
        """Whether the prompt itself fits, so that only the tokens reserved for the reply are missing."""
        return self.tokens < self.context


class ContextFullError(PromptTooLongError):
    """A conversation that leaves no tokens for the reply, although dropping old turns would help."""

    def __init__(self, shortage: ContextShortage) -> None:
        super().__init__(
            shortage.tokens,
            shortage.context,
            shortage.longest,
            f"the conversation with this message has {shortage.tokens:,} tokens "
            f"and the context holds {shortage.context:,}, including one for the reply",
            "drop old turns",
        )


class SummaryTooLongError(PromptTooLongError):
    """Old turns that fill the context, so that no tokens remain to summarise them."""

    def __init__(self, tokens: int, context: int, longest: int) -> None:
        description = "the oldest turns fill the context, so they cannot be summarised"
        super().__init__(tokens, context, longest, description, "drop them")


@dataclass(frozen=True)
class ContextReduction:
    """What was done to make a prompt fit.

    Attributes:
        how: "dropped" or "summarised".
        exchanges: how many exchanges this step removed from the prompt.
        turns: how many turns of the path are not sent now, including those of earlier steps.
        tokens: length of the prompt now.
        context: size of the context window.
    """

    how: str
    exchanges: int
    turns: int
    tokens: int
    context: int

    def marker(self) -> str:
        """Return the line that marks the place in the chat."""
        return f"── {self.how} {exchanges_text(self.exchanges)}; context {self.tokens:,}/{self.context:,} ──"


def exchanges_text(count: int) -> str:
    """Return `the oldest exchange` or `the 3 oldest exchanges`."""
    return "the oldest exchange" if count == 1 else f"the {count:,} oldest exchanges"


def attachment_notices(model: ChatModel, attached: Sequence[Attachment], prompt: Prompt) -> list[str]:
    """Return the lines that name the attached files and say how full the context is with them."""
    if not attached:
        return []
    counted = [(attachment, len(model.encode(attachment.block()))) for attachment in attached]
    about = "about " if prompt.estimated else ""
    return [
        *file_lines(counted),
        f"{files_total(counted)}; context {about}{prompt.tokens:,}/{model.context:,} with this message",
    ]


class ContextMeter:
    """Tokens in use before the next message, for the toolbar: `ctx 1.9k/4.1k`. Counts again only after a change."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._counted: tuple[object, Prompt] = (None, Prompt(()))

    @property
    def tokens(self) -> int:
        """Tokens of the conversation so far; 0 if it is empty."""
        return self.prompt.tokens

    @property
    def prompt(self) -> Prompt:
        """The prompt of the conversation so far; without tokens if it is empty."""
        session = self._session
        tree = session.tree
        options = repr(session.prompt_options(session.reply_settings))
        state = (id(tree), session.end, tree.system, tuple(tree.drops), id(session.model), options)
        if self._counted[0] != state:
            messages = session.messages
            self._counted = state, session.render(messages) if messages else Prompt(())
        return self._counted[1]

    def __call__(self) -> str:
        """Return the text for the toolbar; empty if the prompt cannot be rendered."""
        try:
            about = "~" if self.prompt.estimated else ""
            return f"ctx {about}{short_count(self.tokens)}/{short_count(self._session.model.context)}"
        except QwchatError:  # For example, the template rejects the conversation; the next message reports it.
            return ""


def short_count(tokens: int) -> str:
    """Return a token count of at most four digits: 1,933 is `1.9k`, 999 is `999`."""
    if tokens < 1000:
        return str(tokens)
    return f"{tokens / 1000:.1f}k".replace(".0k", "k") if tokens < 99_950 else f"{tokens / 1000:.0f}k"


def reserved_for_reply(context: int, max_tokens: int | None) -> int:
    """Return how many tokens a prompt should leave: an eighth of the context, at most 512 or `max_tokens`."""
    return max(1, min(context // _REPLY_SHARE, _MAX_RESERVED, context if max_tokens is None else max_tokens))


def find_shortage(
    session: Session, reply: PendingReply, prompt: Prompt, *, with_reserve: bool
) -> ContextShortage | None:
    """Check whether `prompt` leaves enough tokens for `reply`.

    Args:
        session: the conversation.
        reply: the pending reply.
        prompt: its prompt with all turns.
        with_reserve: require the tokens reserved for a reply, not just one.

    Returns:
        What is missing; None if the prompt leaves enough, or has nothing left to drop.

    Raises:
        PromptTooLongError: the last message alone does not fit.
    """
    tokens, context, longest = prompt.tokens, session.model.context, session.model.longest_context
    if tokens < context and not (with_reserve and tokens + _reserved(session) > context):
        return None
    if _old_exchanges(session, reply.end):
        exchanges, shorter = _exchanges_to_drop(session, reply.end, continuing=reply.continuing, extra=0)
        return ContextShortage(tokens, context, longest, exchanges, shorter)
    if tokens >= context:
        raise PromptTooLongError(tokens, context, longest)
    return None


def drop(session: Session, end: int | None, exchanges: int | None = None) -> int:
    """Stop sending the oldest exchanges of the path to `end`. An earlier summary is kept.

    Args:
        session: the conversation.
        end: id of the last turn of the path.
        exchanges: how many to drop; None drops as many as needed.

    Returns:
        How many were dropped.

    Raises:
        UsageError: there are not so many.
        PromptTooLongError: dropping all of them is not enough.
    """
    count = _exchanges_to_drop(session, end, continuing=False, extra=0)[0] if exchanges is None else exchanges
    session.tree.drop(*_turns_to_drop(session, end, count))
    return count


def summarise(session: Session, end: int | None, exchanges: int, cancel: Cancel | None) -> Reply:
    """Let the model summarise the oldest exchanges, and send the summary instead of them.

    Args:
        session: the conversation.
        end: id of the last turn of the path.
        exchanges: how many to summarise.
        cancel: asked whether to stop.

    Yields:
        The events of the summary, which is a reply of its own. If it is stopped or empty, nothing changes.

    Raises:
        UsageError: there are not so many.
        PromptTooLongError: they are too long to summarise.
    """
    model, limit = session.model, _summary_limit(session)
    ids, _ = _turns_to_drop(session, end, exchanges)
    asked: Message = {"role": "user", "content": _INSTRUCTION.format(words=limit // 2)}
    options = replace(session.prompt_options(session.reply_settings), thinking=False)
    prompt = model.prompt([*session.messages_to(max(ids)), asked], options=options)
    if prompt.tokens + limit // 2 > model.context:
        raise SummaryTooLongError(prompt.tokens, model.context, model.longest_context)
    greedy = replace(session.reply_settings.sampling, temperature=0.0)
    unset = session.reply_settings.unset - {"temperature"}
    max_tokens = None if prompt.reasoning == "open" else limit  # A thought that cannot be turned off takes more.
    for event in model.stream(prompt, Request(greedy, seed=0, max_tokens=max_tokens, unset=unset), cancel):
        if isinstance(event, Done) and event.finish_reason != "cancelled" and event.text.strip():
            # Before the event is passed on: the caller may stop reading after it.
            session.tree.drop(ids, _SUMMARY_HEADING + event.text.strip())
        yield event


def exchanges_to_summarise(session: Session, end: int | None, *, continuing: bool = False) -> int:
    """Return how many of the oldest exchanges a summary has to replace.

    Raises:
        PromptTooLongError: replacing all of them is not enough.
    """
    return _exchanges_to_drop(session, end, continuing=continuing, extra=_summary_limit(session))[0]


def measure_reduction(how: str, session: Session, end: int | None, exchanges: int, prompt: Prompt) -> ContextReduction:
    """Return the result of a reduction; `how` is "dropped" or "summarised", `prompt` the one to send now."""
    return ContextReduction(how, exchanges, len(session.tree.dropped(end)), prompt.tokens, session.model.context)


def send_all(session: Session) -> None:
    """Send every turn again."""
    session.tree.drop(())


def unsent_notice(session: Session) -> str | None:
    """Return a notice if some turns of the conversation are not sent, otherwise None."""
    counts = unsent_counts(session, session.end)
    turns = sum(counts.values())
    if not turns:
        return None
    are = "1 old turn is" if turns == 1 else f"{turns:,} old turns are"
    how = "sent as a summary" if counts["summarised"] else "not sent"
    return f"{are} {how}: in a chat, /drop none sends all turns again"


def unsent_counts(session: Session, end: int | None) -> dict[str, int]:
    """Count the turns before `end` that are not sent: "dropped", or "summarised" if a summary is sent instead."""
    counts = {"dropped": 0, "summarised": 0}
    for drop in session.tree.active_drops(end):
        counts["dropped" if drop.summary is None else "summarised"] += len(drop.ids)
    return counts


def _reserved(session: Session) -> int:
    return reserved_for_reply(session.model.context, session.reply_settings.max_tokens)


def _summary_limit(session: Session) -> int:
    return max(1, min(_MAX_SUMMARY_TOKENS, session.model.context // _REPLY_SHARE))


def _old_exchanges(session: Session, end: int | None) -> list[list[Node]]:
    """Return the exchanges before the last one that are still sent, oldest first."""
    dropped = session.tree.dropped(end)
    exchanges: list[list[Node]] = []
    for node in session.tree.path(end):
        if node.id in dropped:
            continue
        if node.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(node)
    return exchanges[:-1]


def _exchanges_to_drop(session: Session, end: int | None, *, continuing: bool, extra: int) -> tuple[int, Prompt]:
    """Find how many old exchanges to drop, given that `extra` tokens replace them.

    A quarter of the context should be free afterwards; otherwise the tokens reserved for a reply; otherwise any.

    Returns:
        The number, and the prompt without those exchanges.

    Raises:
        UsageError: there are no old exchanges.
        PromptTooLongError: dropping all of them is not enough.
    """
    model, context = session.model, session.model.context
    messages = session.messages_to(end)
    old = _old_exchanges(session, end)
    if not old:
        raise UsageError(_NOTHING_TO_DROP)
    kept = len(session.tree.path(end)) - len(session.tree.dropped(end))
    head, turns = messages[: len(messages) - kept], messages[len(messages) - kept :]
    prompts: dict[int, Prompt] = {}

    def prompt(count: int) -> Prompt:
        if count not in prompts:
            gone = sum(len(exchange) for exchange in old[:count])
            prompts[count] = session.render([*head, *turns[gone:]], continuing=continuing)
        return prompts[count]

    def fits(count: int, free: int) -> bool:
        return prompt(count).tokens + extra <= context - free

    for free in (max(_reserved(session), context // _FREE_SHARE), _reserved(session)):
        count = bisect_left(range(1, len(old) + 1), True, key=partial(fits, free=free)) + 1
        if count <= len(old):
            return count, prompt(count)
    fewest = prompt(len(old))
    if fewest.tokens >= context:
        raise PromptTooLongError(fewest.tokens, context, model.longest_context)
    return len(old), fewest


def _turns_to_drop(session: Session, end: int | None, exchanges: int) -> tuple[set[int], str | None]:
    """Return the ids of all turns not to send, with those dropped before, and the last summary among the latter."""
    old = _old_exchanges(session, end)
    if not 1 <= exchanges <= len(old):
        there_are = f"there are {len(old):,}" if len(old) != 1 else "there is 1"
        raise UsageError(f"only exchanges before the last one can be dropped: {there_are}" if old else _NOTHING_TO_DROP)
    before = session.tree.active_drops(end)
    ids = {node.id for exchange in old[:exchanges] for node in exchange}.union(*(each.ids for each in before))
    summaries = [each.summary for each in before if each.summary is not None]
    return ids, summaries[-1] if summaries else None
