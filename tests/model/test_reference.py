"""The reference decoder: properties that hold by definition, and that it names neither a device nor a format."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from qwchat.model import reference as page
from tests.cpu.random_models import config, random_folder, reference

IDS = np.random.default_rng(3).integers(0, 301, 40).tolist()


def test_the_reference_is_plain_numpy() -> None:
    tree = ast.parse(Path(page.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {"qwchat.model.rope", "quant.families", "quant.model_config"}
    assert imported <= {"__future__", "collections.abc", "typing"} | own
    assert {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names} == {
        "numpy",
        "numpy.typing",
    }


def test_a_token_does_not_see_those_after_it() -> None:
    decoder = reference(random_folder(config()))
    whole = decoder.logits(IDS)
    assert whole.shape == (len(IDS), 301)
    assert np.allclose(decoder.logits(IDS[:17]), whole[:17], rtol=1e-12)
    assert not np.allclose(decoder.logits([*IDS[:16], 5]), whole[:17])


def test_layers_one_at_a_time_are_the_whole() -> None:
    decoder = reference(random_folder(config(num_hidden_layers=3, tie_word_embeddings=True)))
    x = decoder.embed(IDS)
    for layer in range(3):
        x = decoder.layer(x, layer)
    assert np.array_equal(decoder.head(x), decoder.logits(IDS))


def test_rope_depends_on_distances_only() -> None:
    from qwchat.model.rope import rope_tables

    model = config()
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, model.head_dim))
    cos, sin = (table.astype(np.float64)[:, None] for table in rope_tables(model, 0, 50))

    def score(query_at: int, key_at: int) -> float:
        turned_q = page.rotated(q, cos[query_at : query_at + 1], sin[query_at : query_at + 1])
        return float((turned_q * page.rotated(k, cos[key_at : key_at + 1], sin[key_at : key_at + 1])).sum())

    assert score(7, 3) == pytest.approx(score(44, 40), rel=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-2)


def test_rounding_is_asked_for_each_product() -> None:
    folder = random_folder(config(num_hidden_layers=1))
    asked: list[str] = []
    decoder = reference(folder)

    def noted(x: page.Array, name: str) -> page.Array:
        asked.append(name)
        return x

    rounded = page.Reference(folder.config, decoder.weights, noted)
    assert np.array_equal(rounded.logits(IDS), decoder.logits(IDS))
    assert asked == [
        *(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        "lm_head.weight",
    ]
