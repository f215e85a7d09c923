"""How full the context is, and making room in it: the oldest exchanges are left out, or a summary stands for them.

An exchange is a question with all that follows it up to the next one.  Nothing is taken out of the conversation: the
tree of turns notes what is not sent any more (:meth:`qwchat.conversation.tree.Tree.drop`), and a resumed session knows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwchat.chat.attachments import Attachment, listing, total
from qwchat.chat.session import Cancel, Reply, Session
from qwchat.chat.view.screen import Screen
from qwchat.conversation.tree import Node
from qwchat.errors import PromptTooLongError, QwchatError, UsageError
from qwchat.events import Done
from qwchat.messages import Message

_ANSWER_SHARE = 8  # An eighth of the context is kept for the answer,
_ANSWER_MOST = 512  # at most so many tokens,
_FREE_SHARE = 4  # and a quarter of it is free once room was made, so that the next messages need not make it again.
_SUMMARY_MOST = 256
_INSTRUCTION = (
    "Summarise our conversation so far in at most {words} words, so that we can go on from your summary alone. "
    "Keep names, numbers, decisions, open questions and what I asked you to remember. Write the summary only."
)
_SUMMARY = "Summary of the earlier conversation:\n\n"
_NOTHING_OLD = "there is nothing to leave out before the last exchange: /clear forgets that one too"


class ContextFullError(PromptTooLongError):
    """A conversation that leaves no room for the answer, though leaving out old turns would make some.

    Attributes:
        end: id of the turn that is to be answered or continued.
        continuing: the turn is to be continued.
        sendable: the conversation fits, but leaves less than is kept for an answer.
        exchanges: how many old exchanges have to be left out.
    """

    def __init__(
        self, tokens: int, context: int, longest: int, end: int | None, *, continuing: bool, exchanges: int
    ) -> None:
        super().__init__(
            tokens,
            context,
            longest,
            f"the conversation has {tokens:,} tokens with this message and the context holds {context:,}, one of them "
            "for the answer",
            "leave out old turns",
        )
        self.end, self.continuing, self.exchanges = end, continuing, exchanges
        self.sendable = tokens < context


class SummaryTooLongError(PromptTooLongError):
    """Old turns that leave no room for their own summary."""

    def __init__(self, tokens: int, context: int, longest: int) -> None:
        facts = "the oldest turns fill the context, so there is no room to summarise them"
        super().__init__(tokens, context, longest, facts, "leave them out")


@dataclass(frozen=True)
class Room:
    """Room that was made.

    Attributes:
        how: "dropped" or "summarised".
        exchanges: how many old exchanges are not sent any more since.
        turns: how many turns of the path are not sent now, with those that were left out before.
        tokens: of the prompt now.
        context: what the context holds.
    """

    how: str
    exchanges: int
    turns: int
    tokens: int
    context: int

    def line(self) -> str:
        """The line that marks the place."""
        what = exchanges_named(self.exchanges)
        are = "is" if self.exchanges == 1 else "are"
        sent = "not sent any more" if self.how == "dropped" else "sent as a summary from here on"
        return f"── {what} {are} {sent}; context {self.tokens:,}/{self.context:,} ──"


def exchanges_named(count: int) -> str:
    """``the oldest exchange``, ``the 3 oldest exchanges``."""
    return "the oldest exchange" if count == 1 else f"the {count:,} oldest exchanges"


def announce(screen: Screen, session: Session, attached: Sequence[Attachment], question: str) -> None:
    """Say what goes along with ``question``, in which it stands, and how full the context is then.

    Raises TemplateError, UsageError.
    """
    if not attached:
        return
    model = session.model
    counted = [(attachment, len(model.encode(attachment.block()))) for attachment in attached]
    tokens = model.count([*session.messages, {"role": "user", "content": question}])
    for line in listing(counted):
        screen.notice(line)
    screen.notice(f"{total(counted)}; context {tokens:,}/{model.context:,} after this")


class Meter:
    """How full the context is before the next message, for the toolbar: ``ctx 1.9k/4.1k``.  Counts after changes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._counted: tuple[object, int] = (None, 0)

    @property
    def tokens(self) -> int:
        """Tokens of the conversation so far; 0 for none."""
        session = self._session
        tree = session.tree
        state = (id(tree), session.end, tree.system, tuple(tree.drops), id(session.model))
        if self._counted[0] != state:
            messages = session.messages
            self._counted = state, session.model.count(messages) if messages else 0
        return self._counted[1]

    def __call__(self) -> str:
        try:
            return f"ctx {short(self.tokens)}/{short(self._session.model.context)}"
        except QwchatError:  # Such as of a template that refuses the conversation: the next message will say it.
            return ""


def short(tokens: int) -> str:
    """``1.9k`` for 1,933 and ``4.1k`` for 4,096; below a thousand as it is."""
    if tokens < 1000:
        return str(tokens)
    return f"{tokens / 1000:.1f}k".replace(".0k", "k") if tokens < 99_950 else f"{tokens / 1000:.0f}k"


def kept_for_answer(context: int, max_tokens: int | None) -> int:
    """Tokens of the context that a prompt should leave: an eighth, at most 512, no more than the answer may have."""
    return max(1, min(context // _ANSWER_SHARE, _ANSWER_MOST, context if max_tokens is None else max_tokens))


def check_room(session: Session, end: int | None, *, continuing: bool, generous: bool) -> None:
    """See whether the turns up to ``end`` leave room for an answer.

    ``continuing``: the last of them is the answer so far; ``generous``: it is not enough that they fit.  Raises
    ContextFullError where old turns are in the way, PromptTooLongError where the last question alone is too long.
    """
    model = session.model
    tokens, context = model.count(session.messages_to(end), continuing=continuing), model.context
    if tokens < context and not (generous and tokens + _kept(session) > context):
        return
    old = len(_old_exchanges(session, end))
    if old:
        exchanges = _needed(session, end, continuing=continuing, extra=0)
        longest = model.longest_context
        raise ContextFullError(tokens, context, longest, end, continuing=continuing, exchanges=exchanges)
    if tokens >= context:
        raise PromptTooLongError(tokens, context, model.longest_context)


def drop(session: Session, end: int | None, exchanges: int | None = None, *, continuing: bool = False) -> Room:
    """Send the ``exchanges`` oldest of the turns up to ``end`` no more; None: as many as it takes.

    What summarised still older ones stays.  Raises UsageError: there are none; PromptTooLongError: it does not help.
    """
    count = _needed(session, end, continuing=continuing, extra=0) if exchanges is None else exchanges
    ids, summary = _left_out(session, end, count)
    session.tree.drop(ids, summary)
    return _made("dropped", session, end, count, continuing=continuing)


def summarise(
    session: Session, end: int | None, cancel: Cancel | None, exchanges: int | None = None, *, continuing: bool = False
) -> Reply:
    """Have the model summarise the ``exchanges`` oldest of the turns up to ``end``; the summary is sent in their place.

    Yields the events of the summary, which is a reply of its own; where it is cut by ``cancel`` or empty, nothing is
    changed.  Raises what :func:`drop` raises, PromptTooLongError also where the turns are too long to be summarised.
    """
    model, limit = session.model, _summary_limit(session)
    count = summary_exchanges(session, end, continuing=continuing) if exchanges is None else exchanges
    ids, _ = _left_out(session, end, count)
    asked: Message = {"role": "user", "content": _INSTRUCTION.format(words=limit // 2)}
    old = [*session.messages_to(max(ids)), asked]
    if (tokens := model.count(old)) + limit // 2 > model.context:
        raise SummaryTooLongError(tokens, model.context, model.longest_context)
    greedy = replace(session.controls.settings, temperature=0.0)
    for event in model.chat(old, settings=greedy, max_tokens=limit, seed=0, cancel=cancel):
        if isinstance(event, Done) and event.finish_reason != "cancelled" and event.text.strip():
            session.tree.drop(ids, _SUMMARY + event.text.strip())  # Now, since nobody asks for more than the end.
        yield event


def summary_exchanges(session: Session, end: int | None, *, continuing: bool = False) -> int:
    """How many of the oldest exchanges a summary has to stand for.  Raises PromptTooLongError: all are not enough."""
    return _needed(session, end, continuing=continuing, extra=_summary_limit(session))


def summarised(session: Session, end: int | None, exchanges: int, *, continuing: bool = False) -> Room:
    """The room that a summary has made."""
    return _made("summarised", session, end, exchanges, continuing=continuing)


def send_everything(session: Session) -> None:
    """Send every turn again."""
    session.tree.drop(())


def standing(session: Session) -> str | None:
    """What is to be known of a conversation that goes on: turns that are not sent; None where all are."""
    counts = left_out(session, session.end)
    turns = sum(counts.values())
    if not turns:
        return None
    are = "1 old turn is" if turns == 1 else f"{turns:,} old turns are"
    way = "sent as a summary" if counts["summarised"] else "not sent any more"
    return f"{are} {way}: in a chat /drop none sends them again"


def left_out(session: Session, end: int | None) -> dict[str, int]:
    """Turns before ``end`` that are not sent: "dropped" ones, and "summarised" ones for which a summary is sent."""
    counts = {"dropped": 0, "summarised": 0}
    for drop in session.tree.active_drops(end):
        counts["dropped" if drop.summary is None else "summarised"] += len(drop.ids)
    return counts


def _kept(session: Session) -> int:
    return kept_for_answer(session.model.context, session.controls.max_tokens)


def _summary_limit(session: Session) -> int:
    return max(1, min(_SUMMARY_MOST, session.model.context // _ANSWER_SHARE))


def _old_exchanges(session: Session, end: int | None) -> list[list[Node]]:
    """What may be left out of the path to ``end``: all that is sent before the last question, oldest first."""
    dropped = session.tree.dropped(end)
    exchanges: list[list[Node]] = []
    for node in session.tree.path(end):
        if node.id in dropped:
            continue
        if node.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(node)
    return exchanges[:-1]


def _needed(session: Session, end: int | None, *, continuing: bool, extra: int) -> int:
    """How many old exchanges have to go, when ``extra`` tokens come in their place.

    A quarter of the context is to be free then; or, where that cannot be had, what an answer should have, or anything.
    Raises PromptTooLongError, and UsageError where there are none.
    """
    model, context = session.model, session.model.context
    messages = session.messages_to(end)
    old = _old_exchanges(session, end)
    if not old:
        raise UsageError(_NOTHING_OLD)
    kept = len(session.tree.path(end)) - len(session.tree.dropped(end))
    head, turns = messages[: len(messages) - kept], messages[len(messages) - kept :]

    def tokens(count: int) -> int:
        gone = sum(len(exchange) for exchange in old[:count])
        return model.count([*head, *turns[gone:]], continuing=continuing) + extra

    for free in (max(_kept(session), context // _FREE_SHARE), _kept(session)):
        count = bisect_left(range(1, len(old) + 1), True, key=lambda count: tokens(count) <= context - free) + 1
        if count <= len(old):
            return count
    fewest = tokens(len(old)) - extra
    if fewest >= context:
        raise PromptTooLongError(fewest, context, model.longest_context)
    return len(old)


def _left_out(session: Session, end: int | None, exchanges: int) -> tuple[set[int], str | None]:
    """Ids that are not to be sent any more, those that are not sent already included, and the summary of those."""
    old = _old_exchanges(session, end)
    if not 1 <= exchanges <= len(old):
        there_are = f"there are {len(old):,} older ones" if len(old) != 1 else "there is 1 older one"
        raise UsageError(
            f"only exchanges before the last one can be left out, and {there_are}" if old else _NOTHING_OLD
        )
    before = session.tree.active_drops(end)
    ids = {node.id for exchange in old[:exchanges] for node in exchange}.union(*(each.ids for each in before))
    summaries = [each.summary for each in before if each.summary is not None]
    return ids, summaries[-1] if summaries else None


def _made(how: str, session: Session, end: int | None, exchanges: int, *, continuing: bool) -> Room:
    tokens = session.model.count(session.messages_to(end), continuing=continuing)
    return Room(how, exchanges, len(session.tree.dropped(end)), tokens, session.model.context)
