"""The built-in texts that a converted model is compared with its source on: prose, code and conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwchat.errors import UsageError
from qwchat.messages import Message
from qwchat.text.prompts import build_prompt
from qwchat.text.template import ChatTemplate
from qwchat.text.tokenizer import Tokenizer

NAME = "built-in texts 1"
"""Name of the texts in a manifest; a change of the texts changes its number."""
LEAST_TOKENS, MOST_TOKENS = 128, 1536
_TOKEN_WEIGHTS = 60e9  # Tokens times weights of a short check: about a second on two cores.
_WINDOW_TOKENS = 256
_MOST_CHARACTERS = 64  # Of a text, for each token that it may give: the rest is not encoded.
_PIECE_TOKENS = 64  # A shorter piece would have hardly any context.


def token_budget(parameters: int) -> int:
    """Return how many tokens of a model with so many weights are compared: fewer of large models."""
    return int(min(MOST_TOKENS, max(LEAST_TOKENS, _TOKEN_WEIGHTS / parameters)))


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts as token ids.

    Attributes:
        name: name of the texts.
        ids: token ids of each text, (tokens,) i64, at least two.
        vocab_size: number of tokens that a prediction may be; rows of the head beyond it are padding.
    """

    name: str
    ids: tuple[NDArray[np.int64], ...]
    vocab_size: int


def check_texts(folder: Path, vocab_size: int, cache: Path | None, tokens: int) -> EncodedTexts:
    """Return the built-in texts as token ids, at most about `tokens` together.

    Conversations are rendered by the model's chat template. A small number of tokens is that of the first texts only.

    Args:
        folder: model folder with tokenizer and template.
        vocab_size: rows of the model's embedding.
        cache: folder for the cached tokenizer; None for none.
        tokens: number of tokens.

    Raises:
        ModelError: tokenizer or template are missing or damaged.
        TemplateError: the template fails.
    """
    tokenizer = Tokenizer.from_folder(folder, cache, vocab_size)
    template = ChatTemplate.from_folder(folder)
    texts = _load()
    texts = texts[: max(1, min(len(texts), tokens // _PIECE_TOKENS))]
    most = -(-tokens // len(texts))
    encoded = [_encode(tokenizer, template, each)[:most] for each in texts]
    return EncodedTexts(NAME, tuple(np.array(ids, np.int64) for ids in encoded if len(ids) > 1), tokenizer.vocab_size)


def text_windows(folder: Path, vocab_size: int, name: str, texts: Sequence[str], tokens: int) -> EncodedTexts:
    """Return the beginnings of some texts as windows of token ids, at most about `tokens` together.

    Args:
        folder: folder with the tokenizer.
        vocab_size: rows of the model's embedding.
        name: name of the texts.
        texts: the texts, which share the tokens equally.
        tokens: number of tokens.

    Raises:
        ModelError: the tokenizer is missing or damaged.
        UsageError: no text has two tokens.
    """
    tokenizer = Tokenizer.from_folder(folder, None, vocab_size)
    share = -(-tokens // len(texts))
    windows = [
        ids[start : min(start + _WINDOW_TOKENS, share)]
        for ids in (tokenizer.encode(text[: share * _MOST_CHARACTERS]) for text in texts)
        for start in range(0, min(len(ids), share), _WINDOW_TOKENS)
    ]
    found = tuple(np.array(ids, np.int64) for ids in windows if len(ids) > 1)
    if not found:
        raise UsageError("the text has no token to predict: give at least two tokens")
    return EncodedTexts(name, found, tokenizer.vocab_size)


def _load() -> list[str | list[Message]]:
    lines = (files("qwchat.evaluation") / "check_texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [each.get("text") or each["messages"] for each in map(json.loads, lines)]


def _encode(tokenizer: Tokenizer, template: ChatTemplate, text: str | list[Message]) -> list[int]:
    if isinstance(text, str):
        return tokenizer.encode(text)
    return list(build_prompt(tokenizer, template, text, continuing=True).ids)
