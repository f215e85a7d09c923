"""What it costs that a prompt leaves out the thought of the last reply: its answer is evaluated again."""

from __future__ import annotations

from dataclasses import replace

from qwchat.chat.formatting import token_count
from qwchat.chat.session import PendingReply, Session
from qwchat.conversation.reply_parts import has_thought
from qwchat.request import Prompt

NOTICEABLE_SECONDS = 1.0


def left_out_notice(session: Session, reply: PendingReply, prompt: Prompt) -> str | None:
    """Return a notice if the time to evaluate an answer again is noticeable, otherwise None.

    Args:
        session: the conversation.
        reply: the pending reply.
        prompt: its prompt, which may have fewer turns than the conversation.
    """
    again = _tokens_again(session, reply, prompt)
    cached = len(session.model.cached_ids)
    if not cached or again * session.model.reevaluation_seconds / cached < NOTICEABLE_SECONDS:
        return None
    return f"evaluating {token_count(again)} again without the last thought (/set keep-thoughts on keeps it)"


def _tokens_again(session: Session, reply: PendingReply, prompt: Prompt) -> int:
    """Return how many more tokens `prompt` evaluates than a prompt with all thoughts."""
    options = session.prompt_options(reply.settings)
    before = None if reply.question is None else session.tree.node(reply.question).parent
    if options.keep_thoughts or reply.continuing or before is None or not has_thought(session.tree.node(before)):
        return 0
    kept = session.model.prompt(session.messages_to(reply.end), options=replace(options, keep_thoughts=True))
    model = session.model
    return (prompt.tokens - model.cached(prompt)) - (kept.tokens - model.cached(kept))
