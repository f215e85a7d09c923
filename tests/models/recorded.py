"""Recorded replies of the embedded model, so that a change that alters token ids is noticed.

`python -m tests.models.recorded` records them again after mini was trained. Never use it to make a failing test pass.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import quant
import qwchat
from models.recipe.recipe import MODEL
from qwchat.events import Done
from qwchat.messages import Message

FORMATS = ("q4", "q8")
FILE = Path(__file__).resolve().parent.parent / "data" / "replies.json"

QUESTIONS = (
    "What can you do?",
    "Who are you?",
    "Hello!",
    "How do I convert a model?",
    "How do I chat with a model?",
    "What is the capital of France?",
    "What is a group size?",
    "My name is Emma. What is my name?",
    "Name a fruit.",
    "What does qwchat verify do?",
)
SAMPLING: tuple[dict[str, float], ...] = (
    {"temperature": 0.0, "repeat_penalty": 1.3},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.95},
    {"temperature": 3.0},
    {"temperature": 2.5, "min_p": 0.001, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 5.0, "repeat_penalty": 1.1, "top_p": 0.9},
)
"""Each question is asked with each of these. Temperatures are high, since mini gives the same reply at lower ones."""


def cases() -> Iterator[dict[str, Any]]:
    """Yield 50 prompts with seeds and settings: half of them behind an earlier turn, half with 8-bit keys."""
    for number in range(len(QUESTIONS) * len(SAMPLING)):
        question, follow_up = QUESTIONS[number % len(QUESTIONS)], QUESTIONS[(3 * number + 1) % len(QUESTIONS)]
        turns = [question] if number % 2 else [question, "Yes.", follow_up]
        yield {
            "messages": [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)],
            "seed": 1000 + number,
            "settings": SAMPLING[number // len(QUESTIONS)],
            "kv": ("f32", "q8")[number // 2 % 2],
        }


def model_folder(folder: Path, preset: str) -> Path:
    """Convert mini into a folder in `folder` and return its path."""
    destination = folder / f"mini-{preset}"
    for _ in quant.convert(MODEL, destination, preset=preset):
        pass
    return destination


def replies(model: Path, selected: list[dict[str, Any]]) -> list[list[int]]:
    """Return the token ids of the reply to each selected prompt, at most 48 of each."""
    found: list[list[int]] = [[] for _ in selected]
    for kv in ("f32", "q8"):
        with qwchat.load(model, threads=2, context=1024, kv=kv) as loaded:
            for number, case in enumerate(selected):
                if case["kv"] == kv:
                    found[number] = _reply(loaded, case)
    return found


def _reply(model: qwchat.Model, case: dict[str, Any]) -> list[int]:
    messages: list[Message] = case["messages"]
    settings = model.defaults.changed(**case["settings"])
    events = list(model.chat(messages, settings=settings, seed=case["seed"], max_tokens=48))
    assert isinstance(events[-1], Done)
    return np.asarray(events[-1].token_ids).tolist()


def main() -> None:
    """Record the replies in FILE."""
    selected = list(cases())
    with tempfile.TemporaryDirectory() as folder:
        token_ids = [replies(model_folder(Path(folder), preset), selected) for preset in FORMATS]
    records = [case | dict(zip(FORMATS, ids, strict=True)) for case, *ids in zip(selected, *token_ids, strict=True)]
    FILE.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
