"""Train a model of the plan on packed text: `python -m models.recipe.mirror.pretrain WORK_FOLDER [--model NAME]`.

The first run collects the texts and trains the tokenizer, which all models share. A stopped run continues from
`WORK_FOLDER/NAME.pt`, also with a plan that has other steps and rates from there on. The sequences of a step depend on
the seed and the step alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..chatml import END_OF_TEXT, ChatML
from ..network import Mini
from ..optimiser import Optimiser
from ..tokenizer import train, write
from ..train import begin, save
from .packages import KINDS
from .plan import ModelPlan, Plan
from .texts import collect, joined, packages_option

MICRO_SEQUENCES = 4
Streams = dict[str, NDArray[np.uint16]]


def prepare(plan: Plan, packages: list[Path], folder: Path) -> Streams:
    """Return the token ids of the texts to train on, by kind. The first call writes them and the tokenizer."""
    stored = folder / "tokens.npz"
    if not stored.exists():
        found = collect(plan, packages)
        pieces = [joined(found[kind, "train"], plan.tokenizer_characters // len(KINDS)) for kind in KINDS]
        write(train(iter(line for piece in pieces for line in piece.split("\n\n")), plan.tokenizer_size), folder)
        chatml = ChatML.load(folder)
        end = chatml.tokenizer.token_to_id(END_OF_TEXT)
        streams = {}
        for kind in KINDS:
            encoded = chatml.tokenizer.encode_batch(found[kind, "train"], add_special_tokens=False)
            streams[kind] = np.array([token for text in encoded for token in [end, *text.ids]], dtype=np.uint16)
        np.savez(stored.with_suffix(".new.npz"), **streams)  # type: ignore[arg-type]
        stored.with_suffix(".new.npz").replace(stored)
    with np.load(stored) as streams:
        return {kind: streams[kind] for kind in KINDS}


def batch(plan: ModelPlan, streams: Streams, step: int) -> Tensor:
    """Return the sequences (sequences, length) of a step."""
    rng = np.random.default_rng((plan.seed, step))
    kinds = list(plan.shares)
    chances = np.array(list(plan.shares.values()))
    rows = []
    for kind in rng.choice(kinds, plan.sequences, p=chances / chances.sum()):
        start = rng.integers(len(streams[kind]) - plan.length)
        rows.append(streams[kind][start : start + plan.length])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def gradients(model: Mini, ids: Tensor) -> float:
    """Compute the gradients of a step on the weights. Return the mean loss per token."""
    count = ids.shape[0] * (ids.shape[1] - 1)
    total = 0.0
    for rows in ids.split(MICRO_SEQUENCES):
        with torch.autocast(rows.device.type, torch.bfloat16):
            loss = model.loss(rows, torch.ones_like(rows, dtype=torch.bool))
        (loss / count).backward()
        total += loss.item()
    return total / count


def run(plan: ModelPlan, streams: Streams, path: Path, options: argparse.Namespace) -> None:
    """Train from the last checkpoint, or from the start, to the end of the plan."""
    torch.manual_seed(plan.seed)
    model = Mini(plan.shape).to(options.device)
    optimiser = Optimiser(model, plan.matrix_rate, plan.vector_rate)
    step, tokens = begin(path, None, 0, model, optimiser)
    print(f"{sum(weight.numel() for weight in model.parameters())} weights, step {step} of {plan.steps}", flush=True)
    if options.compile:
        model.hidden = torch.compile(model.hidden)  # type: ignore[method-assign]
    began, seen = time.monotonic(), 0
    while step < plan.steps:
        ids = batch(plan, streams, step).to(options.device)
        loss = gradients(model, ids)
        optimiser.step(plan.rate(step))
        step, tokens, seen = step + 1, tokens + ids.numel(), seen + ids.numel()
        if step % 10 == 0:
            speed = seen / (time.monotonic() - began)
            print(
                f"step {step} loss {loss:.4f} tokens {tokens} rate {plan.rate(step):.3f} tok/s {speed:.0f}", flush=True
            )
        if step % options.every == 0 or step == plan.steps:
            save(path, model, optimiser, step, tokens)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the tokens and the checkpoints")
    parser.add_argument("--model", default="mirror", help="name in the plan")
    parser.add_argument("--device", default="cpu", help="`cpu` or `cuda`")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--compile", action="store_true", help="compile the layers: faster, a minute to start")
    packages_option(parser)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    plan = Plan.load()
    streams = prepare(plan, options.packages, options.folder)
    run(plan.models[options.model], streams, options.folder / f"{options.model}.pt", options)


if __name__ == "__main__":
    main()
