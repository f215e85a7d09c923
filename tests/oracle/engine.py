"""Runs our engine the ways a conversation can: one pass, chunks, token by token, back and forth."""

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
    """The model folder that `quant.convert` makes of a checkpoint."""
    for _ in quant.convert(source, destination, **settings):  # type: ignore[arg-type]
        pass
    return destination


@contextmanager
def loaded(folder: Path, context: int) -> Iterator[CachedContext]:
    """A context of the decoder of a model folder."""
    with closing(build_decoder(open_model(folder), context=context, threads=THREADS)) as decoder:
        yield CachedContext(decoder)


def feed(cached: CachedContext, token_ids: list[int], chunks: Iterable[int], start: int = 0) -> np.ndarray:
    """Logits (tokens, vocab) of `token_ids` at position `start` and on, fed in pieces of the sizes in `chunks`.

    What the cache held from `start` on is truncated.
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
    """Chunks as the engine's prefill cuts them."""
    return [CHUNK] * (-(-length // CHUNK))


def token_by_token(length: int) -> list[int]:
    """Chunks of decoding."""
    return [1] * length


def any_chunks(length: int, seed: int) -> list[int]:
    """Random sizes between 1 and the largest chunk, small ones as likely as large ones."""
    drawn = random.Random(seed)
    sizes: list[int] = []
    while sum(sizes) < length:
        sizes.append(min(drawn.randint(1, 2 ** drawn.randint(0, 7)), CHUNK))
    return sizes
