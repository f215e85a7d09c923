"""From a conversation to the prompt a model was trained on.

`ChatTemplate` renders text as transformers' `apply_chat_template` does; `encode_chat` makes token ids in which control
tokens come from the template alone, never from what a person or the model has written.
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
from qwchat.text.template.published import is_published

# Nothing that is slow to import: the process that renders imports this package as well.
if TYPE_CHECKING:
    from qwchat.text.template.isolated import IsolatedTemplate
    from qwchat.text.template.sandbox import SandboxedTemplate
    from qwchat.text.tokenizer import Tokenizer

__all__ = ["CHATML", "ChatTemplate", "encode_chat"]

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
CONFIG_LIMIT = 4 << 20  # bytes; files that list every added token of a large vocabulary reach 1 MB
TEXT_KEYS: Final = ("role", "content")
TOKEN_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The form of every Qwen2 model, for folders without a template. It adds no system message of its own."""


class ChatTemplate:
    """The chat template of one model. Made by `from_folder`; safe to share between threads.

    Args:
        source: jinja2 source.
        where: names the template in errors.
        tokens: special tokens by the names under which the template may print them (`eos_token`, ...).

    Raises:
        TemplateError: the template cannot be compiled, or uses what is not allowed.
    """

    def __init__(self, source: str = CHATML, where: str = "qwchat", tokens: Mapping[str, str] | None = None) -> None:
        self.source, self._where = source, where
        self._template = _compile(source, where)
        self._tokens = dict(tokens or {})

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate:
        """The template of a model folder: `chat_template.jinja`, else that of `tokenizer_config.json`, else ChatML.

        Raises:
            ModelError: a file cannot be read or has another form.
            TemplateError: the template cannot be compiled, or uses what is not allowed.
        """
        config_path, template_path = Path(folder) / CONFIG_NAME, Path(folder) / TEMPLATE_NAME
        config = read_json_object(config_path, ModelError, CONFIG_LIMIT) if config_path.exists() else {}
        tokens = {key: text for key in TOKEN_KEYS if (text := _token_text(config.get(key))) is not None}
        if template_path.exists():
            return cls(_read_text(template_path), str(template_path), tokens)
        source = _default_template(config.get("chat_template"), config_path)
        return cls(tokens=tokens) if source is None else cls(source, str(config_path), tokens)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: the turns, first to last.
            add_generation_prompt: end with the header of the assistant's next turn.
            tools: JSON descriptions of functions, for templates that know tools.

        Raises:
            TemplateError: the template fails, refuses the conversation, or exceeds a limit.
            UsageError: a message is none.
        """
        turns = [
            {"role": _text_field(message, "role"), "content": _text_field(message, "content")} for message in messages
        ]
        plain_tools = None if tools is None else json.loads(json.dumps(list(tools)))
        length = sum(len(turn["role"]) + len(turn["content"]) for turn in turns) + len(json.dumps(plain_tools))
        variables = {"messages": turns, "tools": plain_tools, "documents": None}
        text = self._template.render(
            {**self._tokens, **variables, "add_generation_prompt": add_generation_prompt}, length
        )
        if not text and turns and add_generation_prompt:
            raise TemplateError(
                f"the chat template in {self._where} writes nothing for this conversation: "
                "restore the template from the model's source"
            )
        if not is_unicode(text) and all(is_unicode(turn[key]) for turn in turns for key in TEXT_KEYS):
            raise TemplateError(
                f"the chat template in {self._where} writes half a character (lone surrogate): "
                "restore the template from the model's source"
            )
        return text


def _compile(source: str, where: str) -> SandboxedTemplate | IsolatedTemplate:
    """Compile a published template here, and any other in a process that can be killed."""
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
) -> list[int]:
    """Token ids of a conversation.

    Control tokens that the template writes become their ids; the same characters within a role or content stay text.
    Where no message holds any, the ids are those of the tokenizer on the whole rendered text. An assistant's turn with
    `token_ids` enters as these ids, so that the prompt begins with what the KV cache already holds.

    Raises:
        TemplateError: the template fails, refuses the conversation, or exceeds a limit.
        UsageError: a message is none, holds a lone surrogate, or has ids of another vocabulary.
    """
    private = _private_characters(messages)
    known_ids: dict[str, Sequence[int]] = {}
    turns = [_with_placeholder(message, private, known_ids) for message in messages]
    plain = template.render(turns, add_generation_prompt)
    if any(plain.count(mark) != 1 for mark in known_ids):
        # A template that repeats or drops turns gets their text, which it can treat as it likes.
        known_ids, turns = {}, list(messages)
        plain = template.render(turns, add_generation_prompt)
    hidden = {character: next(private) for character in sorted(tokenizer.control_characters)}
    if not any(character in turn[key] for turn in turns for key in TEXT_KEYS for character in hidden):
        return tokenizer.encode_prompt(_split_at_control_tokens(plain, tokenizer, known_ids, {}))
    # While the characters of control tokens are hidden in the contents, none can come from there, in whole or in part.
    table = str.maketrans(hidden)
    masked_turns = [
        Message(role=turn["role"].translate(table), content=turn["content"].translate(table)) for turn in turns
    ]
    masked = template.render(masked_turns, add_generation_prompt)
    shown = str.maketrans({mark: character for character, mark in hidden.items()})
    control = tokenizer.control_pattern
    if masked.translate(shown) != plain and control.findall(masked) == control.findall(plain):
        # The template looks into contents, and what it saw there changed text alone: its own rendering is safe.
        return tokenizer.encode_prompt(_split_at_control_tokens(plain, tokenizer, known_ids, {}))
    return tokenizer.encode_prompt(_split_at_control_tokens(masked, tokenizer, known_ids, shown))


def _private_characters(messages: Iterable[Message]) -> Iterator[str]:
    """Characters without meaning (private use, plane 15) that occur in no message."""
    used = set().union(*(_text_field(message, key) for message in messages for key in TEXT_KEYS))
    return _unused_characters(used)


def _unused_characters(used: Collection[str]) -> Iterator[str]:
    for code in range(0xF0000, 0xFFFFE):
        if (mark := chr(code)) not in used:
            yield mark
    raise UsageError("the conversation has too many turns or private characters (U+F0000 to U+FFFFD): start a new one")


def _with_placeholder(message: Message, private: Iterator[str], known_ids: dict[str, Sequence[int]]) -> Message:
    """The message, with one private character in place of content whose ids are ready; these are noted in
    `known_ids`.
    """
    token_ids = message.get("token_ids")
    if message["role"] != "assistant" or token_ids is None or len(token_ids) == 0:
        return message
    mark = next(private)
    known_ids[mark] = token_ids
    return Message(role=message["role"], content=mark)


def _split_at_control_tokens(
    text: str, tokenizer: Tokenizer, known_ids: Mapping[str, Sequence[int]], shown: Mapping[int, str]
) -> Iterator[str | Sequence[int]]:
    """Rendered text cut at control tokens and placeholders, hidden characters of the text between them shown again."""
    start = 0
    marks = f"|[{''.join(known_ids)}]" if known_ids else ""
    pattern = re.compile(tokenizer.control_pattern.pattern + marks)
    for match in pattern.finditer(text):
        yield text[start : match.start()].translate(shown)
        yield known_ids[match[0]] if match[0] in known_ids else (tokenizer.special_ids[match[0]],)
        start = match.end()
    yield text[start:].translate(shown)


def _text_field(message: Message, key: Literal["role", "content"]) -> str:
    given: object = message  # whatever a caller without type checks has passed
    text = given.get(key) if isinstance(given, Mapping) else None
    if not isinstance(text, str):
        raise UsageError(f"a message needs the text of its {key!r}: got {str(message)[:80]!r}")
    return text


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, ModelError, CONFIG_LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); get the file again"
        ) from error


def _token_text(value: Any) -> str | None:
    """A special token as it is stated: a text, or an object with the text as its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _default_template(value: Any, path: Path) -> str | None:
    """`chat_template` of the config: a text, or a list of named ones of which "default" counts."""
    if isinstance(value, list):
        items = [item for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = items[-1].get("template") if items else None
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{path}: chat_template must be a text or a list with one named default: correct the file")
    return value
