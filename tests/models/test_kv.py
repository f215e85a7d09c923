"""Divergence of the embedded model's distributions with an 8-bit KV cache from those with an f32 cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.recipe import figures
from models.recipe.chatml import ChatML
from models.recipe.recipe import MODEL
from quant import convert
from quant.container import open_model
from qwchat.cpu.build import build_decoder
from qwchat.generation.cached_context import CachedContext

MOST_DIVERGENCE = 1e-3  # nats, mean over positions
DIALOGUES, SEED = 24, 3


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities, (tokens, vocab) f64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


@pytest.fixture(scope="module", params=["q4", "dense"])
def contexts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[CachedContext, CachedContext]]:
    folder = tmp_path_factory.mktemp("kv") / request.param
    list(convert(MODEL, folder, preset=request.param))
    opened: list[CachedContext] = []
    for kv in ("f32", "q8"):
        # Activations of 8 bits round differently after any change, which would count as the cache's divergence.
        decoder = build_decoder(open_model(Path(folder)), context=2048, kv=kv, activations=16)
        opened.append(CachedContext(decoder))
    yield opened[0], opened[1]
    for context in opened:
        context.decoder.close()


def divergences(contexts: tuple[CachedContext, CachedContext], texts: list[list[int]]) -> np.ndarray:
    """Return the Kullback-Leibler divergence at every position, in nats."""
    result = []
    for ids in texts:
        exact, cached = (log_softmax(context.logits(ids)) for context in contexts)
        result.append((np.exp(exact) * (exact - cached)).sum(-1))
    return np.concatenate(result)


@pytest.mark.slow
def test_dialogues(contexts: tuple[CachedContext, CachedContext]) -> None:
    chat = ChatML.load(MODEL)
    texts = [list(ids) for ids, _ in figures.sample(chat, DIALOGUES, SEED)]
    found = divergences(contexts, texts)
    assert found.mean() <= MOST_DIVERGENCE
    assert found.any(), "the caches hold the same"


@pytest.mark.slow
def test_a_text_as_long_as_the_context(contexts: tuple[CachedContext, CachedContext]) -> None:
    chat = ChatML.load(MODEL)
    text: list[int] = []
    for ids, _ in figures.sample(chat, 400, SEED + 1):
        text.extend(ids)
    assert len(text) >= 2048
    found = divergences(contexts, [text[:2048]])
    print(f"mean divergence {found.mean():.2e}, of the last quarter {found[1536:].mean():.2e}")
    assert found.mean() <= MOST_DIVERGENCE
