"""Run our engine in the ways that a conversation can: one pass, chunks, token by token, with truncation."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

import quant
from quant.container import open_model
from qwchat.cpu.build import build_decoder
from qwchat.cpu.workspace import CHUNK
from qwchat.generation.cached_context import CachedContext

THREADS = 2


def converted(source: Path, destination: Path, **settings: object) -> Path:
    """Return the model folder that `quant.convert` makes of a checkpoint."""
    for _ in quant.convert(source, destination, **settings):  # type: ignore[arg-type]
        pass
    return destination


@contextmanager
def loaded(folder: Path, context: int) -> Iterator[CachedContext]:
    """Open a context of the decoder of a model folder."""
    with closing(build_decoder(open_model(folder), context=context, threads=THREADS)) as decoder:
        yield CachedContext(decoder)


def feed(cached: CachedContext, token_ids: list[int], chunks: Iterable[int], start: int = 0) -> np.ndarray:
    """Return logits (tokens, vocab) of `token_ids` from position `start` on, fed in chunks of the given sizes.

    Cached tokens from `start` on are dropped first.
    """
    cached.truncate(start)
    rows = []
    position = 0
    for size in chunks:
        rows.append(cached.extend(token_ids[position : position + size]))
        position += len(rows[-1])
        if position == len(token_ids):
            return np.concatenate(rows)
    raise ValueError("the chunks do not add up to the tokens")


def one_pass(length: int) -> list[int]:
    """Return the sizes of chunks in which the engine evaluates a prompt."""
    return [CHUNK] * (-(-length // CHUNK))


def token_by_token(length: int) -> list[int]:
    """Return the sizes of chunks of decoding."""
    return [1] * length


def any_chunks(length: int, seed: int) -> list[int]:
    """Return random sizes between 1 and the largest chunk; small ones are as likely as large ones."""
    drawn = random.Random(seed)
    sizes: list[int] = []
    while sum(sizes) < length:
        sizes.append(min(drawn.randint(1, 2 ** drawn.randint(0, 7)), CHUNK))
    return sizes
