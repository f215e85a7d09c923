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


def write_text(model: Model, tokens: int, seed: int, folder: Path, documents: list[Ids]) -> Iterator[int]:
    """Let a model write documents, and keep them in `folder`, so that an interrupted run continues where it was.

    Args:
        model: writes the text.
        tokens: how many tokens are wanted.
        seed: equal seeds give equal texts.
        folder: has the file of the documents.
        documents: an empty list, to which the token ids of the documents are added.

    Yields:
        The number of tokens so far, at most `tokens`.

    Raises:
        ModelError: the model ends almost every text at once.
    """
    path = folder / TEXT_NAME
    identity = {"version": _VERSION, "model": model.folder.fingerprint, "seed": seed}
    documents += _kept(path, identity)
    with translate_os_errors(path):
        journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with translate_os_errors(path):
            append_record(journal, identity)
            for document in documents:
                append_record(journal, {"ids": document.tolist()})
        found = sum(map(len, documents))
        while found < tokens:
            yield found
            ids: list[int] = []
            for ids in _document(model, len(documents), seed):
                yield min(found + len(ids), tokens)
            documents.append(np.array(ids, np.int64))
            found += len(ids)
            with translate_os_errors(path):
                append_record(journal, {"ids": ids})
            if len(documents) >= _FAIR_CHANCE and found < _LEAST_LENGTH * len(documents):
                raise ModelError("the model ends its texts at once: calibrate it with files")
        yield tokens
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
    request = Request(_SAMPLING, seed, max_tokens=_DOCUMENT_TOKENS, speculate=False)
    events = model.engine.generate(
        model.cached_context, prompt, request, usable_vocab=model.tokenizer.vocab_size, stop_ids=model.stop_ids
    )
    for event in events:
        if isinstance(event, TokenStep):
            ids.append(event.token_id)
            yield ids
    yield ids


def _kept(path: Path, identity: dict[str, object]) -> list[Ids]:
    """Return the documents that an earlier run with the same identity has kept."""
    try:
        first, *lines = read_bounded(path, UsageError, _MAX_TEXT_BYTES).split(b"\n")[:-1]
        if json.loads(first) != identity:
            return []
        return [np.array(json.loads(line)["ids"], np.int64) for line in lines]
    except (UsageError, ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return []
