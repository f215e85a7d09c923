"""What an 8-bit KV cache costs: the divergence of the embedded model's distributions from those with an f32 cache."""

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
from qwchat.generation.engine import Engine

MOST_DIVERGENCE = 1e-3  # nats, mean over positions
DIALOGUES, SEED = 24, 3


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(tokens, vocab) in f64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


@pytest.fixture(scope="module", params=["q4", "dense"])
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Engine]]:
    folder = tmp_path_factory.mktemp("kv") / request.param
    list(convert(MODEL, folder, preset=request.param))
    opened: list[Engine] = []
    for kv in ("f32", "q8"):
        opened.append(Engine(open_model(Path(folder)), context=2048, kv=kv))
    yield opened[0], opened[1]
    for engine in opened:
        engine.close()


def divergences(engines: tuple[Engine, Engine], texts: list[list[int]]) -> np.ndarray:
    """Kullback-Leibler divergence at every position, nats."""
    result = []
    for ids in texts:
        exact, cached = (log_softmax(engine.logits(ids)) for engine in engines)
        result.append((np.exp(exact) * (exact - cached)).sum(-1))
    return np.concatenate(result)


def test_dialogues(engines: tuple[Engine, Engine]) -> None:
    chat = ChatML.load(MODEL)
    texts = [list(ids) for ids, _ in figures.sample(chat, DIALOGUES, SEED)]
    found = divergences(engines, texts)
    assert found.mean() <= MOST_DIVERGENCE
    assert found.any(), "the caches hold the same"


def test_a_text_as_long_as_the_context(engines: tuple[Engine, Engine]) -> None:
    chat = ChatML.load(MODEL)
    text: list[int] = []
    for ids, _ in figures.sample(chat, 400, SEED + 1):
        text.extend(ids)
    assert len(text) >= 2048
    found = divergences(engines, [text[:2048]])
    print(f"mean divergence {found.mean():.2e}, of the last quarter {found[1536:].mean():.2e}")
    assert found.mean() <= MOST_DIVERGENCE
