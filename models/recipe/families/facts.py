"""Single questions with one written answer: the model itself, Qwen2, quantisation."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from ..phrasing import vary
from ..turns import Family, Turn, load

CELLS = (
    (
        "layers",
        "[How many layers does {name} have|How many layers are in {name}|{name} layers]?",
        "{name} has {value} layers.",
    ),
    (
        "hidden",
        "[What is the hidden size of {name}|How wide is {name}|{name} hidden size]?",
        "{name} has a hidden size of {value}.",
    ),
    (
        "heads",
        "[How many attention heads does {name} have|How many heads does {name} have]?",
        "{name} has {value} query heads per layer.",
    ),
    (
        "kv_heads",
        "[How many KV heads does {name} have|How many key and value heads does {name} have]?",
        "{name} has {value} key and value heads per layer.",
    ),
    (
        "head_dim",
        "[What is the head dimension of {name}|How big are the heads of {name}]?",
        "{name} has heads of size {value}.",
    ),
    (
        "intermediate",
        "[What is the intermediate size of {name}|How wide is the feed-forward block of {name}]?",
        "{name} has an intermediate size of {value}.",
    ),
    (
        "parameters",
        "[How many parameters does {name} have|How large is {name} in parameters|What is {name}|Tell me about {name}|"
        "{name} parameters]?",
        "{name} has {value} parameters.",
    ),
    (
        "licence",
        "[What is the licence of {name}|Under which license is {name}|What license does {name} have]?",
        "{name} is under {value}.",
    ),
    (
        "cache",
        "[How big is the KV cache of {name}|How much KV cache does {name} need per token]?",
        "The KV cache of {name} takes {value} per token in 16 bit.",
    ),
)


@cache
def model_facts() -> tuple[dict[str, Any], ...]:
    """Return one fact per cell of the table of Qwen2 models."""
    found = []
    for model in load("facts_qwen2")["model"]:
        # Users write the name with a hyphen, with a space, or as an Instruct model.
        name = f"[{model['name']}|{model['name']}|{model['name'].replace('-', ' ')}]"
        for key, ask, answer in CELLS:
            text = answer.replace("{name}", model["name"]).replace("{value}", str(model[key]))
            found.append({"asks": [ask.replace("{name}", name)], "answer": text})
        answer = (
            f"{'Yes' if model['tied'] else 'No'}, {model['name']} has {'' if model['tied'] else 'no '}tied embeddings."
        )
        found.append({"asks": [f"[Is {name} tied|Does {name} have tied embeddings]?"], "answer": answer})
    return tuple(found)


@cache
def written(name: str) -> tuple[dict[str, Any], ...]:
    """Return the facts of one table."""
    return tuple(load(name)["fact"])


def ask(rng: random.Random, facts: tuple[dict[str, Any], ...]) -> Turn:
    """Draw one fact in one wording."""
    fact = rng.choice(facts)
    return Turn(vary(rng, rng.choice(fact["asks"])), fact["answer"].strip())


def about(rng: random.Random) -> Turn:
    """Draw a question on the model, a greeting or small talk; frequent first messages are drawn more often."""
    facts = written("about")
    luck = rng.random()
    if luck < 0.12:
        return ask(rng, facts[:2])
    if luck < 0.3:
        return ask(rng, tuple(fact for fact in facts if {"Hello", "Thanks"} & set(fact["asks"])))
    return ask(rng, facts)


def qwen2(rng: random.Random) -> Turn:
    """Draw a question on Qwen2."""
    return ask(rng, model_facts() if rng.random() < 0.45 else written("facts_qwen2"))


def quantisation(rng: random.Random) -> Turn:
    """Draw a question on quantisation."""
    return ask(rng, written("facts_quant"))


FAMILIES: dict[str, Family] = {"about": about, "qwen2": qwen2, "quantisation": quantisation}
