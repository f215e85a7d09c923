"""Vary a question as people do: alternatives in brackets, polite prefixes, missing capitals and punctuation.

A question is written once, as a shape such as `[What is|What's] {a} plus {b}?`. Brackets hold alternatives, braces
hold slots. Answers are never varied.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

INNERMOST = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
PREFIXES = (
    "Please ",
    "Please tell me: ",
    "Can you tell me: ",
    "Could you tell me: ",
    "Tell me, ",
    "Hey, ",
    "Hi, ",
    "Hello, ",
    "Now ",
    "Ok, ",
    "So, ",
    "Question: ",
    "I would like to know: ",
    "I want to know: ",
    "Quick question: ",
    "And ",
    "Next: ",
    "Well, ",
)
SUFFIXES = (" please", ", please", " Thanks!", " Thank you.")


def expand(rng: random.Random, shape: str) -> str:
    """Choose one alternative of every bracket, from the inside out."""
    while match := INNERMOST.search(shape):
        chosen = rng.choice(match.group(1).split("|"))
        shape = shape[: match.start()] + chosen + shape[match.end() :]
    return re.sub(r" +([?.!,]|$)", r"\1", re.sub(r" {2,}", " ", shape)).strip()


def fill(shape: str, slots: Mapping[str, object]) -> str:
    """Replace the slots of a shape with values."""
    for name, value in slots.items():
        shape = shape.replace("{" + name + "}", str(value))
    return shape


def lower_first(text: str) -> str:
    """Lower the first letter, except in words such as "I" and in names in capitals."""
    if len(text) > 1 and text[0].isupper() and (text[1].islower()):
        return text[0].lower() + text[1:]
    return text


def vary(rng: random.Random, shape: str, slots: Mapping[str, object] | None = None) -> str:
    """Return a variant of a question.

    The values of slots keep their case.
    """
    text = expand(rng, shape)
    plain = rng.random()
    if plain < 0.5:
        return fill(text, slots or {})
    if rng.random() < 0.3 and " " in text:
        text = rng.choice(PREFIXES) + lower_first(text)
    if rng.random() < 0.1 and text.endswith("?"):
        text = text[:-1] + rng.choice(SUFFIXES)
    if rng.random() < 0.45:
        text = text.lower()
    mark = rng.random()
    if mark < 0.45:
        text = text.rstrip("?.!")
    elif mark < 0.5 and text.endswith("?"):
        text = text[:-1] + " ?"
    return fill(text, slots or {})
