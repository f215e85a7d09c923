"""Earlier replies as parts of a prompt: as the model generated them, with thought and tags.

The tags before a reply may have been the end of its prompt: `<think>` in templates that open the thought, an empty
thought in those that leave it out. A kept reply repeats them, so that the prompt begins with the tokens that the KV
cache holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG

PromptPart = str | Sequence[int]
"""Text to encode, or token ids."""

_TAGS = re.compile(f"({re.escape(OPENING_TAG)}|{re.escape(CLOSING_TAG)})")


def has_thought(message: Message) -> bool:
    """Return whether a message is a reply with a closed thought."""
    return message["role"] == "assistant" and CLOSING_TAG in message["content"]


def split_thought(content: str) -> tuple[str, str, str, str, str]:
    """Return a reply with a thought as white space, opening tag or "", thought, closing tag and answer."""
    thought, closing, answer = content.partition(CLOSING_TAG)
    if not thought.lstrip().startswith(OPENING_TAG):
        return "", "", thought, closing, answer
    before, opening, thought = thought.partition(OPENING_TAG)
    return before, opening, thought, closing, answer


def tags_before_reply(rendered: str) -> str:
    """Return the think tags at the end of a rendered prompt, with their white space, or "" without any."""
    start = rendered.rfind(OPENING_TAG)
    return rendered[start:] if start >= 0 and rendered.rstrip().endswith((OPENING_TAG, CLOSING_TAG)) else ""


def kept_reply(message: Message, before_reply: str, special_ids: Mapping[str, int]) -> list[PromptPart]:
    """Return the parts of an earlier reply.

    Args:
        message: the reply.
        before_reply: the think tags that the template writes before a reply now.
        special_ids: ids of the tags, if they are tokens.
    """
    content, token_ids, closing_id = message["content"], message.get("token_ids"), special_ids.get(CLOSING_TAG)
    thinks = closing_id in token_ids if token_ids and closing_id is not None else has_thought(message)
    tags = _tags_of(content, before_reply, thinks=thinks, generated=bool(token_ids))
    parts: list[PromptPart] = [(special_ids[each],) if each in special_ids else each for each in _TAGS.split(tags)]
    if token_ids:
        return [*parts, token_ids]
    texts = split_thought(content) if has_thought(message) else (content,)
    return parts + [
        (special_ids[text],) if text in (OPENING_TAG, CLOSING_TAG) and text in special_ids else text for text in texts
    ]


def _tags_of(content: str, before_reply: str, *, thinks: bool, generated: bool) -> str:
    """Return the think tags before a reply.

    Args:
        content: its text.
        before_reply: the tags that the template writes before a reply now.
        thinks: whether its thought is closed.
        generated: whether the model wrote it, after the tags of its prompt.
    """
    if content.lstrip().startswith(OPENING_TAG):
        return ""
    closed = CLOSING_TAG in before_reply
    if thinks:
        return f"{OPENING_TAG}\n" if closed or not before_reply else before_reply
    return before_reply if closed or generated else ""
