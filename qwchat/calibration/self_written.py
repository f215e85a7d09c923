"""Calibration text that a model writes itself, from a seed, so that no files are needed.

The documents are of several kinds, in turn: texts from an empty context, texts that continue a beginning (prose, code,
data, other languages), replies to requests, and replies in a conversation of two requests. All tokens are sampled at
temperature 1, so that they are distributed as the model's own predictions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quant.destination import append_record, translate_os_errors
from quant.safe_files import read_bounded
from qwchat.calibration.windows_of_text import Ids
from qwchat.errors import ModelError, UsageError
from qwchat.events import TokenStep
from qwchat.messages import Message
from qwchat.request import Request, SamplingParams

if TYPE_CHECKING:
    from qwchat.api import Model

TEXT_NAME = "text.jsonl"
_MAX_TEXT_BYTES = 256 << 20
_VERSION = 1
_DOCUMENT_TOKENS = 512
_FAIR_CHANCE, _LEAST_LENGTH = 64, 4  # documents, and tokens that they must have on average
_SAMPLING = SamplingParams(temperature=1.0)

_BEGINNINGS = (
    "The ",
    "def ",
    "# ",
    "In the year ",
    "1. ",
    '{\n  "',
    "Chapter 1\n\n",
    "Question: ",
    "#include <",
    "Die ",
    "Le ",
    "一",
    "| ",
    "import ",
    "Abstract. ",
    '"',
)
_REQUESTS = (
    "Explain how a bicycle stays upright.",
    "Write a Python function that merges two sorted lists.",
    "Tell me a short story about a lighthouse.",
    "What is the capital of Australia, and why is it not Sydney?",
    "Write a polite letter that asks for a refund.",
    "List ten uses of vinegar in a household.",
    "Solve 3x + 7 = 25 step by step.",
    "Translate into French: The library opens at nine in the morning.",
    "Summarise the causes of the First World War.",
    "Write a SQL query for the three largest orders of each customer.",
    "介绍一下你自己。",
    "Give me a recipe for a simple soup as a Markdown table.",
    "",
    "What can you do?",
    "Write a dialogue between a doctor and a patient.",
    "Return a JSON object that describes a book.",
)


class SelfWrittenText:
    """Text that a model writes, kept in a file, so that an interrupted run continues where it was.

    Args:
        folder: folder of the file.
        model: fingerprint of the checkpoint.
        tokens: how many tokens are wanted.
        seed: equal seeds give equal texts.
        vocab_size: number of the model's logits.

    Attributes:
        documents: token ids of the documents so far.
    """

    def __init__(self, folder: Path, model: str, tokens: int, seed: int, vocab_size: int) -> None:
        self._path = folder / TEXT_NAME
        self._identity = {"version": _VERSION, "model": model, "seed": seed}
        self._tokens, self._seed = tokens, seed
        self.documents = _kept(self._path, self._identity, vocab_size)

    @property
    def found(self) -> int:
        """Number of tokens so far."""
        return sum(map(len, self.documents))

    @property
    def complete(self) -> bool:
        """Whether there are as many tokens as are wanted."""
        return self.found >= self._tokens

    def write(self, model: Model) -> Iterator[int]:
        """Let `model` write the documents that are missing.

        Yields:
            The number of tokens so far, at most as many as are wanted.

        Raises:
            ModelError: the model ends almost every text at once.
            DiskFullError: the disk is full.
        """
        with translate_os_errors(self._path):
            journal = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with translate_os_errors(self._path):
                append_record(journal, self._identity)
                for document in self.documents:
                    append_record(journal, {"ids": document.tolist()})
            found = self.found
            while found < self._tokens:
                yield found
                ids: list[int] = []
                for ids in _document(model, len(self.documents), self._seed):
                    yield min(found + len(ids), self._tokens)
                self.documents.append(np.array(ids, np.int64))
                found += len(ids)
                with translate_os_errors(self._path):
                    append_record(journal, {"ids": ids})
                if len(self.documents) >= _FAIR_CHANCE and found < _LEAST_LENGTH * len(self.documents):
                    raise ModelError("the model ends its texts at once: calibrate it with files")
        finally:
            os.close(journal)


def _document(model: Model, number: int, seed: int) -> Iterator[list[int]]:
    """Yield the ids of document `number` as they grow. After the last one the list is complete."""
    kind, place = number % 4, number // 4 + seed
    draw = (seed << 32) + 2 * number
    if kind == 0:
        first = model.config.bos_token_id
        yield from _continued(model, [min(model.stop_ids) if first is None else first], draw)
    elif kind == 1:
        yield from _continued(model, list(model.encode(_BEGINNINGS[place % len(_BEGINNINGS)])), draw)
    else:
        messages: list[Message] = [{"role": "user", "content": _request(place + 5 * kind)}]
        prompt = model.prompt_ids(messages)
        ids = prompt
        for ids in _continued(model, prompt, draw):
            yield ids
        if kind == 3:
            reply = ids[len(prompt) :]
            messages.append({"role": "assistant", "content": model.decode(reply), "token_ids": reply})
            messages.append({"role": "user", "content": _request(place)})
            yield from _continued(model, model.prompt_ids(messages), draw + 1)


def _request(number: int) -> str:
    return _REQUESTS[number % len(_REQUESTS)]


def _continued(model: Model, prompt: list[int], seed: int) -> Iterator[list[int]]:
    """Yield the ids of a prompt with one more token of its continuation each time, and in the end once more."""
    ids = list(prompt)
    # A conversation of two such replies fits the context window.
    longest = min(_DOCUMENT_TOKENS, model.context // 4)
    request = Request(_SAMPLING, seed, max_tokens=longest, speculate=False)
    events = model.engine.generate(
        model.cached_context, prompt, request, usable_vocab=model.tokenizer.vocab_size, stop_ids=model.stop_ids
    )
    for event in events:
        if isinstance(event, TokenStep):
            ids.append(event.token_id)
            yield ids
    yield ids


def _kept(path: Path, identity: dict[str, object], vocab_size: int) -> list[Ids]:
    """Return the documents that an earlier run with the same identity has kept."""
    try:
        first, *lines = read_bounded(path, UsageError, _MAX_TEXT_BYTES).split(b"\n")[:-1]
        if json.loads(first) != identity:
            return []
        documents = [np.array(json.loads(line)["ids"], np.int64) for line in lines]
    except (UsageError, ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return []
    sound = all(ids.ndim == 1 and len(ids) and ids.min() >= 0 and ids.max() < vocab_size for ids in documents)
    return documents if sound else []
