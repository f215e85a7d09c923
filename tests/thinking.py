"""Tiny random checkpoints of reasoning models, with templates in the manner of the published ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qwchat
from quant import convert
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG
from qwchat.text.template.encoding import encode_chat
from qwchat.text.tokenizer import Tokenizer
from tests.quant.checkpoints import make_checkpoint, write_json

OPENED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|im_start|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|im_end|>' + message['content'].split('</think>')[-1] + '<|endoftext|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|><think>\\n' }}{% endif %}"
)
"""Opens the thought in the prompt, and cuts thoughts of earlier replies."""

SWITCHED = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""Lets the model open its thought, and writes an empty one if `enable_thinking` is false."""

OPENING_ID, CLOSING_ID = 283, 284


def make_thinking_checkpoint(folder: Path, template: str, *, tokens: bool = True) -> Path:
    """Write a checkpoint with this template; with `tokens`, its tokenizer has the think tags as added tokens."""
    make_checkpoint(folder, config_overrides={"hidden_size": 128, "max_position_embeddings": 512})
    config_path, tokenizer_path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    write_json(config_path, config | {"chat_template": template})
    if tokens:
        tokenizer = json.loads(tokenizer_path.read_text(encoding="utf-8"))
        flags = {**tokenizer["added_tokens"][0], "special": False}
        assert tokenizer["added_tokens"][-1]["id"] == OPENING_ID - 1
        tokenizer["added_tokens"] += [
            {**flags, "id": OPENING_ID, "content": OPENING_TAG},
            {**flags, "id": CLOSING_ID, "content": CLOSING_TAG},
        ]
        write_json(tokenizer_path, tokenizer)
    return folder


def make_thinking_model(folder: Path, template: str) -> Path:
    """Write and convert a checkpoint with this template, and return the model folder."""
    checkpoint = make_thinking_checkpoint(folder / "tiny", template)
    list(convert(checkpoint, folder / "tiny-q4"))
    return folder / "tiny-q4"


def load_scripted(path: str | Path, reply: str, **options: Any) -> qwchat.Model:
    """Load a model that gives `reply` to every message, through its own engine and cache."""
    model = qwchat.load(path, threads=1, **options)
    follow(model, reply)
    return model


def follow(model: qwchat.Model, reply: str) -> None:
    """Make a loaded model give `reply` to every message from now on.

    Its logits prefer the tokens of the reply, and those of the answer after a thought that was closed elsewhere.
    """
    decoder = model.engine.decoder
    run = type(decoder).run.__get__(decoder)
    header = encode_chat(model.tokenizer, model.template, [])
    script = _Script(encode_reply(model.tokenizer, reply), model.encode("\n"), min(model.stop_ids))
    held = [0] * model.context

    def run_scripted(ids: NDArray[np.int64], position: int, logits_from: int, *others: Any) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = run(ids, position, logits_from, *others)
        held[position : position + len(ids)] = ids.tolist()
        logits[:] = 0
        for row, length in zip(logits, range(position + logits_from + 1, position + len(ids) + 1), strict=True):
            for score, token in enumerate(reversed(script.following(_after_last(header, held[:length]))), 10):
                row[token] = score
        return logits

    decoder.run = run_scripted  # type: ignore[method-assign, assignment]


def encode_reply(tokenizer: Tokenizer, reply: str) -> list[int]:
    """Return the token ids of a reply whose tags are tokens."""
    pieces = re.split(f"({OPENING_TAG}|{CLOSING_TAG})", reply)
    special = tokenizer.special_ids
    return tokenizer.encode_prompt([special[each]] if each in special else each for each in pieces)


class _Script:
    """The tokens of a reply, one after another."""

    def __init__(self, reply: list[int], newline: list[int], end: int) -> None:
        self._reply, self._newline, self._end = reply, newline, end
        end = reply.index(CLOSING_ID) + 1 if CLOSING_ID in reply else 0
        self._answer = [] if not end and OPENING_ID in reply else self._without_newlines(reply[end:])

    def following(self, so_far: list[int]) -> list[int]:
        """Return the tokens that may follow, the likeliest first."""
        likely = self._reply[len(so_far) :][:1] if self._reply[: len(so_far)] == so_far else []
        if CLOSING_ID in so_far:
            said = self._without_newlines(so_far[so_far.index(CLOSING_ID) + 1 :])
            likely += self._answer[len(said) :][:1]
        return likely or [self._end]

    def _without_newlines(self, ids: list[int]) -> list[int]:
        start = next((place for place, token in enumerate(ids) if [token] != self._newline), len(ids))
        return ids[start:]


def _after_last(part: list[int], ids: list[int]) -> list[int]:
    """Return the ids after the last occurrence of `part`, or no ids."""
    ends = (end for end in range(len(ids), len(part) - 1, -1) if ids[end - len(part) : end] == part)
    end = next(ends, None)
    return [] if end is None else ids[end:]
