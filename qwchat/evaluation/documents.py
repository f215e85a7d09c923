"""Texts and conversations as token ids, with the tokens that count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quant.safe_files import read_bounded
from qwchat.characters import sanitise_name
from qwchat.errors import UsageError
from qwchat.messages import Message
from qwchat.request import Prompt

MAX_FILE_BYTES = 1 << 30
_ROLES = ("system", "user", "assistant")


class DocumentEncoder(Protocol):
    """What turns texts into token ids: a model, or its tokenizer and template."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`."""

    def prompt(self, messages: Sequence[Message], *, continuing: bool = False) -> Prompt:
        """Render the prompt of a conversation; see `qwchat.api.Model.prompt`."""


@dataclass(frozen=True, eq=False)
class Document:
    """A text that is predicted token by token.

    Attributes:
        ids: token ids, (tokens,) i64.
        first_scored: index of the first token whose prediction counts, at least 1.
        text_bytes: bytes of its text in UTF-8, for progress.
        source: number of the document that it belongs to: replies of one conversation share it.
    """

    ids: NDArray[np.int64]
    first_scored: int
    text_bytes: int
    source: int


def read_text(path: Path) -> str:
    """Return the text of a file. Raises UsageError if it cannot be read or is not UTF-8."""
    return decode_text(read_bounded(path, UsageError, MAX_FILE_BYTES), sanitise_name(str(path)))


def decode_text(data: bytes, name: str) -> str:
    """Return the text of a file's bytes. Raises UsageError, which begins with `name`, if it is not UTF-8."""
    if b"\0" in data:
        raise UsageError(f"{name} is a binary file (contains NUL bytes): give a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start:,}): convert it to UTF-8") from error


def text_document(model: DocumentEncoder, text: str, source: int) -> Document:
    """Return a plain text as a document whose every token but the first counts."""
    return Document(np.array(model.encode(text), np.int64), 1, len(text.encode()), source)


def reply_documents(model: DocumentEncoder, messages: list[Message], source: int) -> Iterator[Document]:
    """Yield a document for each reply of a conversation: its prompt, rendered by the chat template, and the reply.

    Only the tokens of the reply count. Raises TemplateError if the template fails on the conversation.
    """
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"]:
            continue
        prompt = model.prompt(messages[: number + 1], continuing=True)
        ids = np.array(prompt.ids, np.int64)
        yield Document(ids, max(1, prompt.tokens - prompt.continued), len(message["content"].encode()), source)


def parse_conversations(text: str, where: str) -> list[list[Message]]:
    """Return the conversations of a JSON Lines text: one object with `messages` on each line.

    Raises:
        UsageError: a line is not such an object; the message begins with `where`.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found.append(_parse_conversation(line, f"{where}, line {number:,}"))
    return found


def _parse_conversation(line: str, where: str) -> list[Message]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: give one conversation per line") from error
    listed = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UsageError(f'{where} has no "messages": give {{"messages": [{{"role": …, "content": …}}]}}')
    messages: list[Message] = []
    for each in listed:
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            raise UsageError(f"{where} has a message without a role ({', '.join(_ROLES)}) or without text")
        messages.append({"role": role, "content": content})
    return messages
