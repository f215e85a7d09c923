"""Thought and answer of a stored reply.

A reply is stored as the model wrote it, with the tags of its thought: its token ids stand for this text, and chat
templates cut the thought themselves. Only the figures of a reply tell whether its text begins with a thought.
"""

from __future__ import annotations

from qwchat.conversation.tree import Node
from qwchat.reasoning import ReplyParts, split_reply

REASONING_TOKENS = "reasoning_tokens"
"""Figure of a reply that has a thought (see `qwchat.events.Stats`)."""


def reply_parts(node: Node) -> ReplyParts:
    """Return the thought of a turn, "" for most, and its text without it."""
    tokens = (node.stats or {}).get(REASONING_TOKENS)  # From a file, which may claim anything.
    if node.role == "assistant" and isinstance(tokens, int) and tokens > 0:
        return split_reply(node.content)
    return ReplyParts("", node.content)


def is_unfinished_thought(node: Node) -> bool:
    """Return whether a reply ended before its answer began."""
    return has_thought(node) and not reply_parts(node).answer


def has_thought(node: Node) -> bool:
    """Return whether a reply begins with a thought, which may be empty or unfinished."""
    return reply_parts(node).answer != node.content
