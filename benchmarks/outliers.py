"""Measure what each format loses on a model with outliers, beside what it loses on the model without them.

    python -m benchmarks.outliers
    python -m benchmarks.outliers CHECKPOINT --text FILE --formats q4 q8 q8/kv8

Each row of the table is an injection of `benchmarks.injections`, which leaves the logits as they are, and each column
a format: the mean KL divergence from the dense model, and how many times that of the format without outliers it is.
`/kv8` after a format adds the 8-bit KV cache. Without a checkpoint the embedded model is measured on dialogues that it
was not trained on.

The exit code is 1 if a format loses more than twice its divergence.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import qwchat
from benchmarks.injections import INJECTIONS, Checkpoint, read, write
from models.recipe.chatml import ChatML
from models.recipe.figures import sample
from models.recipe.recipe import MODEL
from quant.conversion import convert
from qwchat.chat.view.table import format_table
from qwchat.evaluation.comparison import score

BAR = 2.0
FORMATS = ("q4", "q4-small", "q6", "q8", "lin4", "q8/kv8")
BASELINES = {"key-biases": "wide-heads"}
PLAIN = "none"
KV8 = "/kv8"
WINDOW = 256  # tokens
Windows = Sequence[tuple[list[int], NDArray[np.intp]]]


@dataclass(frozen=True)
class Loss:
    """Mean divergence of a format on one injected model, in nats."""

    injection: str
    name: str
    divergence: float


def windows_of(checkpoint: Path, texts: Sequence[Path], count: int) -> Windows:
    """Return ids and the positions of the tokens whose predictions count, of at most `count` pieces of text."""
    chatml = ChatML.load(checkpoint)
    if not texts:
        return sample(chatml, count, seed=13)
    pieces = [chatml.ids(text.read_text(encoding="utf-8")) for text in texts]
    found = [ids[start : start + WINDOW] for ids in pieces for start in range(0, len(ids) - WINDOW, WINDOW)]
    every = max(1, len(found) // count)
    return [(ids, np.arange(1, len(ids))) for ids in found[::every][:count]]


def predictions(source: Path, name: str, windows: Windows, work: Path) -> list[NDArray[np.float32]]:
    """Return the logits that predict the marked tokens of each window, from a model in a format."""
    preset, kv = (name.removesuffix(KV8), "q8") if name.endswith(KV8) else (name, "f32")
    folder = work / preset
    if not folder.exists():
        for _ in convert(source, folder, preset=preset):
            pass
    with qwchat.load(folder, kv=kv, device="cpu") as model:
        return [model.logits(ids)[places - 1] for ids, places in windows]


def losses(source: Path, names: Sequence[str], windows: Windows, work: Path) -> dict[str, float]:
    """Return the mean divergence of each format from the dense model."""
    dense = predictions(source, "dense", windows, work)
    found = {}
    for name in names:
        parts = [
            score(logits, np.asarray(ids)[places], exact).divergence
            for logits, exact, (ids, places) in zip(
                predictions(source, name, windows, work), dense, windows, strict=True
            )
        ]
        found[name] = float(np.concatenate(parts).mean())
    return found


def measure(original: Path, injections: Sequence[str], names: Sequence[str], windows: Windows) -> list[Loss]:
    """Return the losses of all formats on the model as it is and with each injection."""
    plain = read(original)
    found = []
    for injection in (PLAIN, *injections):
        with tempfile.TemporaryDirectory() as folder:
            source, work = Path(folder) / "source", Path(folder)
            write(injected(plain, injection), source, original)
            divergences = losses(source, names, windows, work)
        found += [Loss(injection, name, value) for name, value in divergences.items()]
    return found


def injected(checkpoint: Checkpoint, injection: str) -> Checkpoint:
    """Return a checkpoint with an injection, or as it is."""
    return checkpoint if injection == PLAIN else INJECTIONS[injection](checkpoint)


def ratios(found: Sequence[Loss]) -> dict[tuple[str, str], float]:
    """Return by injection and format how many times the divergence without outliers a format loses."""
    known = {(loss.injection, loss.name): loss.divergence for loss in found}
    plain = {key: BASELINES.get(key[0], PLAIN) for key in known}
    return {key: value / known.get((plain[key], key[1]), known[PLAIN, key[1]]) for key, value in known.items()}


def table(found: Sequence[Loss], names: Sequence[str]) -> str:
    """Return the table of divergences and ratios."""
    ratio = ratios(found)
    value = {(loss.injection, loss.name): loss.divergence for loss in found}
    rows = [
        [injection, *(f"{value[injection, name]:.3e} × {ratio[injection, name]:.2f}" for name in names)]
        for injection in dict.fromkeys(loss.injection for loss in found)
    ]
    return format_table(["outliers", *names], rows)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="texts to measure on")
    parser.add_argument("--formats", nargs="+", default=FORMATS, metavar="FORMAT", help="presets, with /kv8 or not")
    parser.add_argument("--injections", nargs="+", default=tuple(INJECTIONS), choices=tuple(INJECTIONS))
    parser.add_argument("--count", type=int, default=40, help="pieces of text")
    options = parser.parse_args()
    if options.checkpoint != MODEL and not options.text:
        parser.error("give the texts to measure another model on")
    windows = windows_of(options.checkpoint, options.text, options.count)
    found = measure(options.checkpoint, options.injections, options.formats, windows)
    print(table(found, options.formats))
    return int(any(ratio > BAR for ratio in ratios(found).values()))


if __name__ == "__main__":
    sys.exit(main())
