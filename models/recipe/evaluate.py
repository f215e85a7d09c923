"""Measure exact match per family on held-out prompts: `python -m models.recipe.evaluate [FOLDER]`.

Prompts are drawn with seeds that training never uses. An answer is exact if greedy decoding generates it token by
token, including its end. That is the case exactly if the correct token scores highest at each position, which one
forward pass shows. With `--generate`, the answers are generated and compared as text instead.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .backends import Model, open_model
from .chatml import ChatML
from .dialogues import FAMILIES, MEMORY, budget, remember
from .recipe import MODEL, Recipe
from .turns import Dialogue

CONTEXT = 2048


def held_out(recipe: Recipe, family: str, seed: int, chatml: ChatML) -> Iterator[Dialogue]:
    """Yield dialogues of one family, without end; the last turn is the one to evaluate."""
    rng = random.Random(f"held-out:{seed}:{family}")
    phase = recipe.phase(recipe.compared)
    while True:
        if family == MEMORY:
            dialogue = remember(rng, phase.mixture, budget(rng, phase.longest), chatml.measure())
        else:
            dialogue = Dialogue(None, (FAMILIES[family](rng),))
        if len(chatml.encode(dialogue)[0]) <= CONTEXT:
            yield dialogue


def predicted(model: Model, chatml: ChatML, dialogue: Dialogue) -> tuple[list[int], list[int]]:
    """Return the ids of the last answer, and the likeliest token at each of their positions."""
    ids, _ = chatml.encode(dialogue)
    ids = ids[: len(ids) - len(chatml.newline)]
    start = len(chatml.prompt(dialogue.messages()))
    scores = model.logits(ids[:-1])[start - 1 :]
    return ids[start:], np.argmax(scores, axis=-1).tolist()


def exact(model: Model, chatml: ChatML, dialogue: Dialogue, generate: bool) -> tuple[bool, str]:
    """Return True if the last answer is exact, and the answer of the model.

    Without `generate`, each token of the answer is predicted behind the correct tokens before it.
    """
    if generate:
        reply = model.answer(dialogue.messages())
        return reply == dialogue.turns[-1].answer, reply
    right, found = predicted(model, chatml, dialogue)
    return right == found, chatml.tokenizer.decode(found)


def evaluate(
    model: Model, chatml: ChatML, families: list[str], count: int, seed: int, generate: bool = False, shown: int = 0
) -> dict[str, float]:
    """Return the share of exact answers per family."""
    recipe = Recipe.load()
    shares: dict[str, float] = {}
    for family in families:
        hits = misses = 0
        for dialogue in held_out(recipe, family, seed, chatml):
            hit, reply = exact(model, chatml, dialogue, generate)
            hits += hit
            if not hit:
                misses += 1
                if misses <= shown:
                    turn = dialogue.turns[-1]
                    print(f"  {family}: {turn.ask!r}\n    expected {turn.answer!r}\n    reply    {reply!r}")
            if hits + misses == count:
                break
        shares[family] = hits / count
        print(f"{family:14} {100 * shares[family]:6.1f} %", flush=True)
    return shares


def main() -> None:
    """Run the command line, and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL)
    parser.add_argument(
        "--engine", choices=("torch", "qwchat"), default="torch", help="torch reads the bf16 checkpoint"
    )
    parser.add_argument("--count", type=int, default=500, help="prompts per family")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", action="append", choices=[*FAMILIES, MEMORY], help="only this family (repeatable)")
    parser.add_argument("--generate", action="store_true", help="generate the answers instead of scoring them")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print up to N wrong answers per family")
    options = parser.parse_args()
    model = open_model(options.engine, options.folder)
    families = options.family or [*FAMILIES, MEMORY]
    chatml = ChatML.load(MODEL)
    shares = evaluate(model, chatml, families, options.count, options.seed, options.generate, options.show)
    print(json.dumps({"count": options.count, "seed": options.seed, "exact": shares}))


if __name__ == "__main__":
    main()
