"""Train the tokenizer: `python -m models.recipe.tokenizer [FOLDER]`.

The pipeline is Qwen2's: NFC, the same split, byte-level BPE, digits one by one. All 256 bytes are in the alphabet, so
decoding restores any text.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .chatml import END_OF_TEXT, IM_END, IM_START
from .dialogues import SYSTEMS, dialogue
from .recipe import MODEL, Recipe

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = (END_OF_TEXT, IM_START, IM_END)


def corpus(recipe: Recipe) -> Iterator[str]:
    """Yield the texts of dialogues of the first mixture."""
    rng = random.Random(f"{recipe.seed}:tokenizer")
    phase = recipe.phases[0]
    yield from SYSTEMS
    for _ in range(recipe.tokenizer.dialogues):
        for turn in dialogue(rng, phase.mixture, phase.turns, 200, lambda text: len(text) // 3).turns:
            yield "user\n" + turn.ask
            yield "assistant\n" + turn.answer


def train(texts: Iterator[str], size: int) -> Tokenizer:
    """Train and return a tokenizer of `size` ids and the special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, `vocab.json` and `merges.txt` as the Qwen2 checkpoints have them."""
    table = json.loads(tokenizer.to_str())
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in table["model"]["merges"]]
    table["model"]["merges"] = merges
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    vocabulary = json.dumps(table["model"]["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL)
    folder = parser.parse_args().folder
    recipe = Recipe.load()
    tokenizer = train(corpus(recipe), recipe.tokenizer.size)
    write(tokenizer, folder)
    print(f"{tokenizer.get_vocab_size()} tokens in {folder}")


if __name__ == "__main__":
    main()
