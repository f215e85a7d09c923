"""Convert a conversation to token ids: control tokens come from the template, never from the user or the model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qwchat.errors import UsageError
from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG
from qwchat.text.template import TEXT_KEYS, ChatTemplate, text_field
from qwchat.text.template.kept_replies import (
    PromptPart,
    has_thought,
    kept_reply,
    split_thought,
    tags_before_reply,
)
from qwchat.text.template.variables import json_variables, translate_text
from qwchat.text.tokenizer import Tokenizer


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    *,
    keep_thoughts: bool = False,
) -> list[int]:
    """Return the token ids of a conversation. `variables` are those of `ChatTemplate.render`.

    Control tokens from the template become their ids. The same characters in a role, content or variable stay text. If
    no message contains them, the ids equal those of the rendered text as a whole. A message of the assistant with
    `token_ids` is inserted as these ids, so that the prompt begins with the tokens that the KV cache already holds. If
    the template knows `</think>`, it gets the text of a reply with a thought instead, so that it can cut the thought,
    unless `keep_thoughts` is set.

    Raises:
        TemplateError: the template fails, refuses the conversation, or exceeds a limit.
        UsageError: a message does not have a role and content, contains a lone surrogate, or has ids of another
            vocabulary; or a variable is reserved or not JSON.
    """
    variables = json_variables(variables or {})
    variable_text = json.dumps(variables, ensure_ascii=False)
    private = _private_characters(messages, variable_text)
    cuts = CLOSING_TAG in template.source
    inserted = _is_kept if keep_thoughts else partial(_is_inserted, cuts, tokenizer.special_ids.get(CLOSING_TAG))
    marked: dict[str, Message] = {}
    turns = [_with_placeholder(each, private, marked) if inserted(each) else each for each in messages]
    plain = template.render(turns, add_generation_prompt, variables=variables)
    if any(plain.count(mark) != 1 for mark in marked):
        # The template repeats, drops or changes turns: give it their text instead of placeholders.
        marked, turns = {}, list(messages)
        plain = template.render(turns, add_generation_prompt, variables=variables)
    replies: dict[str, Sequence[PromptPart]] = {mark: [each.get("token_ids", ())] for mark, each in marked.items()}
    if keep_thoughts:
        before = tags_before_reply(template.render(turns, True, variables=variables))
        replies = {mark: kept_reply(each, before, tokenizer.special_ids) for mark, each in marked.items()}
    split = partial(_split_at_control_tokens, tokenizer, replies)
    hidden = {character: next(private) for character in sorted(tokenizer.control_characters)}
    untrusted = [variable_text, *(turn[key] for turn in turns for key in TEXT_KEYS)]
    if not any(character in text for text in untrusted for character in hidden):
        return tokenizer.encode_prompt(split(plain, {}))
    # With the control characters hidden in contents and variables, no part of a control token can come from there.
    table = str.maketrans(hidden)
    masked_turns = [
        Message(role=turn["role"].translate(table), content=_mask_content(turn, table, keep_tags=cuts))
        for turn in turns
    ]
    masked = template.render(masked_turns, add_generation_prompt, variables=translate_text(variables, table))
    restored = str.maketrans({mark: character for character, mark in hidden.items()})
    control = tokenizer.control_pattern
    if masked.translate(restored) != plain and control.findall(masked) == control.findall(plain):
        # The template inspects contents, and the hidden characters changed only text. The plain rendering is safe.
        return tokenizer.encode_prompt(split(plain, {}))
    return tokenizer.encode_prompt(split(masked, restored))


def _is_inserted(cuts: bool, closing_id: int | None, message: Message) -> bool:
    """Return whether a message is a reply to insert as token ids; not if the template `cuts` its thought."""
    token_ids = message.get("token_ids") or ()
    if message["role"] != "assistant" or len(token_ids) == 0:
        return False
    return not (cuts and (has_thought(message) or closing_id in token_ids))


def _is_kept(message: Message) -> bool:
    """Return whether a message is a reply to insert as it was generated."""
    return message["role"] == "assistant" and (bool(message.get("token_ids")) or has_thought(message))


def _mask_content(message: Message, table: Mapping[int, str], *, keep_tags: bool) -> str:
    """Return the content with its control characters hidden, except in the tags around the thought of a reply."""
    content = message["content"]
    if not (keep_tags and has_thought(message)):
        return content.translate(table)
    before, opening, thought, closing, answer = split_thought(content)
    return f"{before}{opening}{thought.translate(table)}{closing}{answer.translate(table)}"


def _private_characters(messages: Iterable[Message], others: str) -> Iterator[str]:
    """Yield private-use characters of plane 15 that do not occur in any message or in `others`."""
    used = set(others).union(*(text_field(message, key) for message in messages for key in TEXT_KEYS))
    return _unused_characters(used)


def _unused_characters(used: Collection[str]) -> Iterator[str]:
    for code in range(0xF0000, 0xFFFFE):
        if (mark := chr(code)) not in used:
            yield mark
    raise UsageError(
        "the conversation has too many messages or private-use characters (U+F0000 to U+FFFFD): start a new one"
    )


def _with_placeholder(message: Message, private: Iterator[str], marked: dict[str, Message]) -> Message:
    """Return the message with a private character as its content, which is added to `marked`."""
    mark = next(private)
    marked[mark] = message
    return Message(role=message["role"], content=mark)


def _split_at_control_tokens(
    tokenizer: Tokenizer, replies: Mapping[str, Sequence[PromptPart]], text: str, restored: Mapping[int, str]
) -> Iterator[PromptPart]:
    """Split rendered text at control tokens and placeholders, and restore the hidden characters in the text between."""
    start = 0
    marks = f"|[{''.join(replies)}]" if replies else ""
    pattern = re.compile(tokenizer.control_pattern.pattern + marks)
    for match in pattern.finditer(text):
        yield text[start : match.start()].translate(restored)
        yield from replies.get(match[0]) or [(tokenizer.special_ids[match[0]],)]
        start = match.end()
    yield text[start:].translate(restored)
