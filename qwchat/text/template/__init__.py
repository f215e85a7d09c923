"""Convert a conversation to the prompt that the model was trained on.

`ChatTemplate` renders text like `apply_chat_template` of transformers. `encode_chat` returns token ids in which control
tokens come only from the template, never from the text of the user or the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from quant.safe_files import read_bounded, read_json_object
from qwchat.characters import is_unicode
from qwchat.errors import ModelError, TemplateError, UsageError
from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG
from qwchat.text.template.published import is_published
from qwchat.text.template.variables import TOKEN_NAMES, json_variables, translate_text

# Keep imports fast: the worker process imports this package as well.
if TYPE_CHECKING:
    from qwchat.text.template.isolated import IsolatedTemplate
    from qwchat.text.template.sandbox import SandboxedTemplate
    from qwchat.text.tokenizer import Tokenizer

__all__ = ["CHATML", "ChatTemplate", "encode_chat"]

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
CONFIG_LIMIT = 4 << 20  # bytes; files that list every added token of a large vocabulary reach 1 MB
TEXT_KEYS: Final = ("role", "content")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Chat format of all Qwen2 models, for folders without a template. It does not add a system message."""


class ChatTemplate:
    """Chat template of one model. Created by `from_folder`. Threads may share it.

    Args:
        source: jinja2 source.
        where: name of the template for messages.
        tokens: special tokens by the names that the template may use (`eos_token`, ...).

    Raises:
        TemplateError: the template cannot be compiled, or uses a construct that is not allowed.
    """

    def __init__(self, source: str = CHATML, where: str = "qwchat", tokens: Mapping[str, str] | None = None) -> None:
        self.source, self._where = source, where
        self._template = _compile(source, where)
        self._tokens = dict(tokens or {})

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """Read the template of a model folder: `chat_template.jinja`, or `tokenizer_config.json`, or ChatML.

        Raises:
            ModelError: a file cannot be read or has another form.
            TemplateError: the template cannot be compiled, or uses a construct that is not allowed.
        """
        config_path, template_path = Path(folder) / CONFIG_NAME, Path(folder) / TEMPLATE_NAME
        config = read_json_object(config_path, ModelError, CONFIG_LIMIT) if config_path.exists() else {}
        tokens = {key: text for key in TOKEN_NAMES if (text := _token_text(config.get(key))) is not None}
        if template_path.exists():
            return cls(_read_text(template_path), str(template_path), tokens)
        source = _default_template(config.get("chat_template"), config_path)
        return cls(tokens=tokens) if source is None else cls(source, str(config_path), tokens)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: messages in order.
            add_generation_prompt: end with the header of the assistant's next turn.
            tools: JSON descriptions of functions, for templates that support tools.
            variables: JSON values of other variables that the template may use, such as `enable_thinking`.

        Raises:
            TemplateError: the template fails, refuses the conversation, or exceeds a limit.
            UsageError: a message does not have a role and content, or a variable is reserved or not JSON.
        """
        given_variables = json_variables(variables or {})
        turns = [
            {"role": _text_field(message, "role"), "content": _text_field(message, "content")} for message in messages
        ]
        plain_tools = None if tools is None else json.loads(json.dumps(list(tools)))
        length = sum(len(turn["role"]) + len(turn["content"]) for turn in turns)
        length += len(json.dumps([plain_tools, given_variables]))
        given = {"messages": turns, "tools": plain_tools, "documents": None}
        text = self._template.render(
            {**self._tokens, **given_variables, **given, "add_generation_prompt": add_generation_prompt}, length
        )
        if not text and turns and add_generation_prompt:
            raise TemplateError(
                f"the chat template in {self._where} writes no text for this conversation: "
                "restore the template from the model's source"
            )
        if not is_unicode(text) and all(is_unicode(turn[key]) for turn in turns for key in TEXT_KEYS):
            raise TemplateError(
                f"the chat template in {self._where} writes a lone surrogate, which is not a character: "
                "restore the template from the model's source"
            )
        return text


def _compile(source: str, where: str) -> SandboxedTemplate | IsolatedTemplate:
    """Compile a published template in this process and any other in the worker process, which can be killed."""
    if is_published(source):
        from qwchat.text.template.sandbox import SandboxedTemplate

        return SandboxedTemplate(source, where)
    from qwchat.text.template.isolated import IsolatedTemplate

    return IsolatedTemplate(source, where)


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
    used = set(others).union(*(_text_field(message, key) for message in messages for key in TEXT_KEYS))
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


def _text_field(message: Message, key: Literal["role", "content"]) -> str:
    given: object = message  # callers without type checks may pass anything
    text = given.get(key) if isinstance(given, Mapping) else None
    if not isinstance(text, str):
        raise UsageError(f"a message needs a string under {key!r}, not {str(message)[:80]!r}")
    return text


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, ModelError, CONFIG_LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); get the file again"
        ) from error


def _token_text(value: Any) -> str | None:
    """Return the text of a special token, which is a string or an object with the string as its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _default_template(value: Any, path: Path) -> str | None:
    """Return `chat_template` of the config: a string, or the one named "default" in a list of templates."""
    if isinstance(value, list):
        items = [item for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = items[-1].get("template") if items else None
    if value is not None and not isinstance(value, str):
        raise ModelError(
            f"{path}: chat_template must be a string, or a list with a template named default: correct the file"
        )
    return value
