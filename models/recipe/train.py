"""Train the mini model: `python -m models.recipe.train WORK_FOLDER`.

The recipe determines every token of the training. A stopped run continues from `WORK_FOLDER/checkpoint.pt`. Checkpoints
are written under a new name and renamed, so that one can be exported at any time. `--from FOLDER --step N` starts from
an exported model instead of random weights; the optimiser starts without momentum, so the rates after step N warm up.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing

from .chatml import ChatML
from .network import Mini
from .optimiser import Optimiser, rounded, summed
from .recipe import MODEL, Recipe
from .shape import Shape

MICRO_TOKENS = 2048
TIGHT = 0.88  # least share of a micro batch that is text rather than padding
Encoded = tuple[list[int], list[bool]]


def batch(recipe: Recipe, chatml: ChatML, step: int, context: int) -> list[Encoded]:
    """Return the encoded dialogues of a step, shortest first."""
    measure = chatml.measure()
    found: list[Encoded] = []
    tokens = 0
    for dialogue in recipe.draw(step, measure):
        encoded = chatml.encode(dialogue)
        if len(encoded[0]) > context:
            continue
        found.append(encoded)
        tokens += len(encoded[0])
        if tokens >= recipe.phase(step).tokens:
            return sorted(found, key=lambda pair: len(pair[0]))
    return found


def micro_batches(encoded: list[Encoded]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of similar length, padded on the right, at most `MICRO_TOKENS` together and with little padding."""
    start = 0
    while start < len(encoded):
        end, text = start + 1, len(encoded[start][0])
        while end < len(encoded):
            size = len(encoded[end][0]) * (end + 1 - start)
            text += len(encoded[end][0])
            if size > MICRO_TOKENS or text < TIGHT * size:
                break
            end += 1
        rows = encoded[start:end]
        width = len(rows[-1][0])
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        predicted = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (tokens, marks) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            predicted[i, : len(marks)] = torch.tensor(marks)
        yield ids, predicted
        start = end


def gradients(model: Mini, encoded: list[Encoded]) -> float:
    """Compute the gradients of a batch on the weights. Return the mean loss per predicted token.

    With n workers, each takes every n-th dialogue; as they are sorted by length, the shares are equal.
    """
    workers, worker = distributed.get_world_size(), distributed.get_rank()
    count = sum(sum(marks) for _, marks in encoded)
    total = torch.zeros(1)
    for ids, predicted in micro_batches(encoded[worker::workers]):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(ids, predicted)
        (loss / count).backward()
        total += loss.detach()
    weights = list(model.parameters())
    *found, total = summed([weight.grad for weight in weights if weight.grad is not None] + [total])
    for weight, gradient in zip(weights, found, strict=True):
        weight.grad = gradient
    return total.item() / count


def quantised_gradients(model: Mini, optimiser: Optimiser, encoded: list[Encoded], rng: random.Random) -> float:
    """Compute gradients with half of the matrices rounded, then restore the exact weights (straight-through)."""
    chosen = [weight for weight in optimiser.matrices if rng.random() < 0.5]
    exact = [weight.detach().clone() for weight in chosen]
    with torch.no_grad():
        for weight in chosen:
            weight.copy_(rounded(weight))
    loss = gradients(model, encoded)
    with torch.no_grad():
        for weight, saved in zip(chosen, exact, strict=True):
            weight.copy_(saved)
    return loss


def save(path: Path, model: Mini, optimiser: Optimiser, step: int, tokens: int) -> None:
    """Write a checkpoint atomically."""
    new = path.with_suffix(".new")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state(), "step": step, "tokens": tokens}, new)
    new.replace(path)


def begin(path: Path, exported: Path | None, first: int, model: Mini, optimiser: Optimiser) -> tuple[int, int]:
    """Load the checkpoint, or else the exported model if there is one.

    Returns:
        The next step (`first` for an exported model, 0 for random weights), and the tokens of the training so far.
    """
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.restore(saved["optimiser"])
        return saved["step"], saved["tokens"]
    if exported is None:
        return 0, 0
    model.load_state_dict(load_file(exported / "model.safetensors"))
    return first, 0


def run(recipe: Recipe, options: argparse.Namespace) -> None:
    """Train from the last checkpoint, or from the start, to the end of the recipe."""
    shape = Shape()
    chatml = ChatML.load(options.tokenizer)
    torch.manual_seed(recipe.seed)
    model = Mini(shape)
    optimiser = Optimiser(model, recipe.matrix_rate, recipe.vector_rate)
    path = options.folder / "checkpoint.pt"
    step, tokens = begin(path, options.exported, options.step, model, optimiser)
    if options.compile:
        model.hidden = torch.compile(model.hidden, dynamic=True)  # type: ignore[method-assign]
    leads = distributed.get_rank() == 0
    began, seen = time.monotonic(), 0
    while step < recipe.steps:
        encoded = batch(recipe, chatml, step, shape.context)
        if recipe.quantises(step):
            loss = quantised_gradients(model, optimiser, encoded, random.Random(f"{recipe.seed}:round:{step}"))
        else:
            loss = gradients(model, encoded)
        optimiser.step(recipe.rate(step))
        step += 1
        count = sum(len(ids) for ids, _ in encoded)
        tokens, seen = tokens + count, seen + count
        if leads and step % 10 == 0:
            speed = seen / (time.monotonic() - began)
            print(
                f"step {step} loss {loss:.4f} tokens {tokens} rate {recipe.rate(step):.3f} tok/s {speed:.0f}",
                flush=True,
            )
        if leads and (step % options.every == 0 or step == recipe.steps):
            save(path, model, optimiser, step, tokens)


def worker(rank: int, recipe: Recipe, options: argparse.Namespace) -> None:
    """Run one of the processes that train together, on one thread."""
    torch.set_num_threads(1)
    meeting = f"file://{options.folder.resolve() / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.workers)
    run(recipe, options)
    distributed.destroy_process_group()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the checkpoints, not the model folder")
    parser.add_argument("--from", dest="exported", type=Path, metavar="FOLDER", help="exported model to start from")
    parser.add_argument("--step", type=int, default=0, help="step that an exported model starts at")
    parser.add_argument("--tokenizer", type=Path, default=MODEL, help="folder of the tokenizer")
    parser.add_argument("--workers", type=int, default=2, help="processes with one thread each")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--compile", action="store_true", help="compile the layers: a third faster, a minute to start")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "meeting").unlink(missing_ok=True)
    multiprocessing.spawn(worker, (Recipe.load(), options), options.workers)


if __name__ == "__main__":
    main()
