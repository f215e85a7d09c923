"""Convert a conversation to the prompt that the model was trained on.

`ChatTemplate` renders text like `apply_chat_template` of transformers. `qwchat.text.template.encoding` makes token ids
of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from quant.json_fields import is_unicode
from quant.safe_files import read_bounded, read_json_object
from quant.tokenizer_file import CONFIG_LIMIT
from qwchat.errors import ModelError, TemplateError, UsageError
from qwchat.messages import Message
from qwchat.text.template.published import is_published
from qwchat.text.template.variables import TOKEN_NAMES, json_variables

# Keep imports fast: the worker process imports this package as well.
if TYPE_CHECKING:
    from qwchat.text.template.isolated import IsolatedTemplate
    from qwchat.text.template.sandbox import SandboxedTemplate

__all__ = ["CHATML", "ChatTemplate"]

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
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
            {"role": text_field(message, "role"), "content": text_field(message, "content")} for message in messages
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


def text_field(message: Message, key: Literal["role", "content"]) -> str:
    """Return a field of a message. Raises UsageError if it is missing or not a string."""
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
