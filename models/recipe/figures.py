"""Write the measured figures into the model card.

    python -m models.recipe.figures --quantised q4=FOLDER --quantised q8=FOLDER

The figures are exact match per family, and perplexity and KL divergence against bf16 over the answers of held-out
dialogues. They replace the text between two markers of the card; the rest of the card stays as it is.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .backends import Model, open_model
from .chatml import ChatML
from .dialogues import FAMILIES, MEMORY, dialogue
from .evaluate import CONTEXT, evaluate
from .recipe import MODEL, Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

START, END = "<!-- figures:start -->", "<!-- figures:end -->"


@dataclass(frozen=True)
class Distance:
    """Perplexity of a model on held-out answers, and its distance from the reference."""

    perplexity: float
    mean: float
    tail: float
    same: float


def log_probabilities(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log-softmax over the vocabulary."""
    wide = scores.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def sample(chatml: ChatML, count: int, seed: int) -> list[tuple[list[int], NDArray[np.intp]]]:
    """Draw held-out dialogues and return the ids of each, and the positions of the tokens to predict."""
    recipe = Recipe.load()
    phase = recipe.phase(recipe.compared)
    rng = random.Random(f"held-out:{seed}:figures")
    found: list[tuple[list[int], NDArray[np.intp]]] = []
    while len(found) < count:
        ids, predicted = chatml.encode(dialogue(rng, phase.mixture, phase.turns, phase.longest, chatml.measure()))
        if len(ids) <= CONTEXT:
            found.append((ids, np.flatnonzero(predicted)))
    return found


def distances(reference: Model, others: dict[str, Model], chatml: ChatML, count: int, seed: int) -> dict[str, Distance]:
    """Return the perplexity of every model, and its distance from the reference."""
    names = ["bf16", *others]
    losses: dict[str, list[float]] = {name: [] for name in names}
    divergences: dict[str, list[float]] = {name: [] for name in names}
    same: dict[str, list[bool]] = {name: [] for name in names}
    for ids, places in sample(chatml, count, seed):
        right = np.asarray(ids)[places]
        exact = log_probabilities(reference.logits(ids)[places - 1])
        for name in names:
            found = exact if name == "bf16" else log_probabilities(others[name].logits(ids)[places - 1])
            losses[name].extend(-found[np.arange(len(right)), right])
            divergences[name].extend((np.exp(exact) * (exact - found)).sum(axis=-1))
            same[name].extend(exact.argmax(axis=-1) == found.argmax(axis=-1))
    return {
        name: Distance(
            math.exp(float(np.mean(losses[name]))),
            float(np.mean(divergences[name])),
            float(np.quantile(divergences[name], 0.999)),
            float(np.mean(same[name])),
        )
        for name in names
    }


def tables(shares: dict[str, dict[str, float]], found: dict[str, Distance], count: int, dialogues: int) -> str:
    """Return the figures as Markdown."""
    names = list(shares)
    lines = [f"Exact answers, {count} held-out prompts per family:", ""]
    lines += [f"| Family | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for family in shares[names[0]]:
        cells = " | ".join(f"{100 * shares[name][family]:.1f} %" for name in names)
        lines.append(f"| {family} | {cells} |")
    lines += ["", f"Tokens of the answers in {dialogues} held-out dialogues, against bf16:", ""]
    lines += [
        "| Format | Perplexity | Mean KL | KL, 99.9th percentile | Same first choice |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, distance in found.items():
        cells = f"{distance.perplexity:.4f} | {distance.mean:.5f} | {distance.tail:.4f} | {100 * distance.same:.2f} %"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def replace(card: Path, text: str) -> None:
    """Replace the text between the markers of the card."""
    before, rest = card.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    card.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quantised",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="name and folder of a model (repeatable)",
    )
    parser.add_argument("--count", type=int, default=500, help="prompts per family")
    parser.add_argument("--dialogues", type=int, default=200, help="dialogues for perplexity and KL")
    parser.add_argument("--seed", type=int, default=13, help="training was guided by 1, 2 and 7 to 12")
    parser.add_argument("--card", type=Path, default=MODEL / "README.md")
    options = parser.parse_args()
    chatml = ChatML.load(MODEL)
    reference = open_model("torch", MODEL)
    others = {}
    for pair in options.quantised:
        name, folder = pair.split("=", 1)
        others[name] = open_model("qwchat", Path(folder))
    families = [*FAMILIES, MEMORY]
    shares = {}
    for name, model in {"bf16": reference, **others}.items():
        print(name)
        shares[name] = evaluate(model, chatml, families, options.count, options.seed)
    found = distances(reference, others, chatml, options.dialogues, options.seed)
    text = tables(shares, found, options.count, options.dialogues)
    replace(options.card, text)
    print(text)


if __name__ == "__main__":
    main()
