"""Write dialogues of the kinds that the built-in model learnt, for `benchmarks.quality_per_bit`.

    python -m benchmarks.mini_dialogues FILE.jsonl --count 200 --seed 7

Each line is a conversation of the families in `models.recipe`, drawn with a seed that training never uses; another seed
gives other dialogues, for calibration.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from models.recipe.chatml import ChatML
from models.recipe.dialogues import FAMILIES, MEMORY
from models.recipe.evaluate import held_out
from models.recipe.recipe import MODEL, Recipe


def conversations(count: int, seed: int) -> list[list[dict[str, str]]]:
    """Return `count` conversations, the families in turn."""
    recipe, chatml = Recipe.load(), ChatML.load(MODEL)
    streams = [held_out(recipe, family, seed, chatml) for family in (*FAMILIES, MEMORY)]
    drawn = itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), count)
    return [[*dialogue.messages(), {"role": "assistant", "content": dialogue.turns[-1].answer}] for dialogue in drawn]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="dialogues of the built-in model's recipe as JSON Lines")
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    lines = (json.dumps({"messages": each}, ensure_ascii=False) for each in conversations(options.count, options.seed))
    options.file.write_text("".join(f"{line}\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
