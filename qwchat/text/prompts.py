"""Prompts of conversations: token ids, and what the reply begins with."""

from __future__ import annotations

from collections.abc import Sequence

from qwchat.errors import UsageError
from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG, ReasoningStart
from qwchat.request import Prompt, PromptOptions
from qwchat.text.template import ChatTemplate
from qwchat.text.template.encoding import encode_chat
from qwchat.text.tokenizer import Tokenizer

_TAIL_TOKENS = 32  # More than a tag and the white space after it have in any vocabulary.


def build_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    continuing: bool = False,
    options: PromptOptions | None = None,
) -> Prompt:
    """Return the prompt of a conversation, up to the start of the assistant's next turn.

    Args:
        tokenizer: encodes the conversation.
        template: renders it.
        messages: messages in order.
        continuing: the last message is an unfinished reply, with whose tokens the prompt ends.
        options: how to render it; those of `PromptOptions` if not given.

    Raises:
        TemplateError: the chat template fails on the conversation.
        UsageError: `continuing` is set and the last message is not a reply, or a variable is reserved or not JSON.
    """
    unfinished_ids = _unfinished_reply_ids(tokenizer, messages) if continuing else []
    earlier = messages[:-1] if continuing else messages
    options = options or PromptOptions()
    ids = encode_chat(tokenizer, template, earlier, variables=options.variables, keep_thoughts=options.keep_thoughts)
    start = reasoning_start(tokenizer, template, ids)
    return Prompt([*ids, *unfinished_ids], len(unfinished_ids), start)


def has_thoughts(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    """Return whether replies may begin with a thought: the tokenizer or the template has think tags."""
    tags_are_tokens = {OPENING_TAG, CLOSING_TAG} <= tokenizer.special_ids.keys()
    return tags_are_tokens or CLOSING_TAG in template.source


def reasoning_start(tokenizer: Tokenizer, template: ChatTemplate, ids: Sequence[int]) -> ReasoningStart:
    """Return how the reply to a prompt begins; "none" for models whose tokenizer and template have no think tags."""
    if not has_thoughts(tokenizer, template):
        return "none"
    opening, closing = (tokenizer.special_ids.get(tag) for tag in (OPENING_TAG, CLOSING_TAG))
    tail = list(ids[-_TAIL_TOKENS:])
    if opening is not None and closing is not None:
        while tail and not tokenizer.decode(tail[-1:]).strip():
            tail.pop()
        last = tail[-1] if tail else None
        return "open" if last == opening else "none" if last == closing else "optional"
    text = tokenizer.decode(tail).rstrip()
    return "open" if text.endswith(OPENING_TAG) else "none" if text.endswith(CLOSING_TAG) else "optional"


def _unfinished_reply_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of the reply to continue. Raises UsageError if there is no reply at the end."""
    if not messages or messages[-1]["role"] != "assistant":
        raise UsageError("there is nothing to continue: the last message is not a reply")
    token_ids = messages[-1].get("token_ids")
    return tokenizer.encode(messages[-1]["content"]) if token_ids is None else [int(each) for each in token_ids]
