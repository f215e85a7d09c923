"""The built-in texts that a converted model is compared with its source on: prose, code and conversations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwchat.messages import Message
from qwchat.text.prompts import build_prompt
from qwchat.text.template import ChatTemplate
from qwchat.text.tokenizer import Tokenizer

NAME = "built-in texts 1"
"""Name of the texts in a manifest; a change of the texts changes its number."""
LEAST_TOKENS, MOST_TOKENS = 128, 1536
_TOKEN_WEIGHTS = 60e9  # Tokens times weights of a short check: about a second on two cores.
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


def _load() -> list[str | list[Message]]:
    lines = (files("qwchat.evaluation") / "check_texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [each.get("text") or each["messages"] for each in map(json.loads, lines)]


def _encode(tokenizer: Tokenizer, template: ChatTemplate, text: str | list[Message]) -> list[int]:
    if isinstance(text, str):
        return tokenizer.encode(text)
    return list(build_prompt(tokenizer, template, text, continuing=True).ids)
