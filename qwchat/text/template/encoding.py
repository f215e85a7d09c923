"""Convert a conversation to token ids: control tokens come from the template, never from the user or the model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qwchat.errors import UsageError
from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG
from qwchat.text.template import TEXT_KEYS, ChatTemplate, text_field
from qwchat.text.template.variables import json_variables, translate_text
from qwchat.text.tokenizer import Tokenizer


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the token ids of a conversation. `variables` are those of `ChatTemplate.render`.

    Control tokens from the template become their ids. The same characters in a role, content or variable stay text. If
    no message contains them, the ids equal those of the rendered text as a whole. A message of the assistant with
    `token_ids` is inserted as these ids, so that the prompt begins with the tokens that the KV cache already holds. If
    the template knows `</think>`, it gets the text of a reply with a thought instead, so that it can cut the thought.

    Raises:
        TemplateError: the template fails, refuses the conversation, or exceeds a limit.
        UsageError: a message does not have a role and content, contains a lone surrogate, or has ids of another
            vocabulary; or a variable is reserved or not JSON.
    """
    variables = json_variables(variables or {})
    variable_text = json.dumps(variables, ensure_ascii=False)
    private = _private_characters(messages, variable_text)
    known_ids: dict[str, Sequence[int]] = {}
    cuts, closing_id = CLOSING_TAG in template.source, tokenizer.special_ids.get(CLOSING_TAG)
    turns = [
        message
        if cuts and (_has_thought(message) or closing_id in (message.get("token_ids") or ()))
        else _with_placeholder(message, private, known_ids)
        for message in messages
    ]
    plain = template.render(turns, add_generation_prompt, variables=variables)
    if any(plain.count(mark) != 1 for mark in known_ids):
        # The template repeats, drops or changes turns: give it their text instead of placeholders.
        known_ids, turns = {}, list(messages)
        plain = template.render(turns, add_generation_prompt, variables=variables)
    hidden = {character: next(private) for character in sorted(tokenizer.control_characters)}
    untrusted = [variable_text, *(turn[key] for turn in turns for key in TEXT_KEYS)]
    if not any(character in text for text in untrusted for character in hidden):
        return tokenizer.encode_prompt(_split_at_control_tokens(plain, tokenizer, known_ids, {}))
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
        return tokenizer.encode_prompt(_split_at_control_tokens(plain, tokenizer, known_ids, {}))
    return tokenizer.encode_prompt(_split_at_control_tokens(masked, tokenizer, known_ids, restored))


def _has_thought(message: Message) -> bool:
    return message["role"] == "assistant" and CLOSING_TAG in message["content"]


def _mask_content(message: Message, table: Mapping[int, str], *, keep_tags: bool) -> str:
    """Return the content with its control characters hidden, except in the tags around the thought of a reply."""
    content = message["content"]
    if not (keep_tags and _has_thought(message)):
        return content.translate(table)
    thought, tag, answer = content.partition(CLOSING_TAG)
    before, opening, thought = (
        thought.partition(OPENING_TAG) if thought.lstrip().startswith(OPENING_TAG) else ("", "", thought)
    )
    return f"{before}{opening}{thought.translate(table)}{tag}{answer.translate(table)}"


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


def _with_placeholder(message: Message, private: Iterator[str], known_ids: dict[str, Sequence[int]]) -> Message:
    """Replace the content of a message that has token ids by a private character, and add the ids to `known_ids`."""
    token_ids = message.get("token_ids")
    if message["role"] != "assistant" or token_ids is None or len(token_ids) == 0:
        return message
    mark = next(private)
    known_ids[mark] = token_ids
    return Message(role=message["role"], content=mark)


def _split_at_control_tokens(
    text: str, tokenizer: Tokenizer, known_ids: Mapping[str, Sequence[int]], restored: Mapping[int, str]
) -> Iterator[str | Sequence[int]]:
    """Split rendered text at control tokens and placeholders, and restore the hidden characters in the text between."""
    start = 0
    marks = f"|[{''.join(known_ids)}]" if known_ids else ""
    pattern = re.compile(tokenizer.control_pattern.pattern + marks)
    for match in pattern.finditer(text):
        yield text[start : match.start()].translate(restored)
        yield known_ids[match[0]] if match[0] in known_ids else (tokenizer.special_ids[match[0]],)
        start = match.end()
    yield text[start:].translate(restored)
