"""The compiled forward pass, compared with a float64 decoder; it depends on neither chunks, threads nor history."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.cpu import memory
from qwchat.cpu.build import build_decoder
from qwchat.cpu.kv_cache import choose_kv_kind
from qwchat.errors import ModelError, NonFiniteLogitsError, NotEnoughMemoryError, UsageError
from qwchat.model.reference import Reference
from qwchat.request import SamplingParams
from tests.cpu.kernels.random_tensors import KINDS, Folder
from tests.cpu.random_models import config, random_folder, random_quantised_folder, reference
from tests.generation.conversations import generate, open_context, open_conversation

IDS = np.random.default_rng(3).integers(0, 301, 700).tolist()
GREEDY = SamplingParams()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
        {"num_attention_heads": 14, "hidden_size": 14 * 64, "num_hidden_layers": 1},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 1024, "num_hidden_layers": 1},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        {"model_type": "qwen3", "head_dim": 64},
        {"model_type": "qwen3", "head_dim": 128, "hidden_size": 96, "tie_word_embeddings": True},
    ],
    ids=["plain", "tied", "ratio 7", "ratio 8, head 128", "yarn", "qwen3", "qwen3, wide heads, tied"],
)
def test_logits_equal_the_decoder(changes: dict[str, object]) -> None:
    folder = random_folder(config(**changes))
    ids = IDS[:150]
    expected = reference(folder).logits(ids)
    with open_context(folder, threads=2, context=512 if "rope_scaling" not in changes else 256) as built:
        error = np.abs(built.logits(ids) - expected).max()
    assert error < 1e-5 * np.abs(expected).max()


def quantised_folder(kind: tuple[str, int, bool]) -> Folder:
    """Return a model of one layer whose matrices have random codes."""
    return random_quantised_folder(config(hidden_size=128, intermediate_size=256, num_hidden_layers=1), kind)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[5], KINDS[7]], ids=str)
@pytest.mark.parametrize(("activations", "tolerance"), [(8, 2e-3), (16, 2e-4)])
def test_quantised_layers(kind: tuple[str, int, bool], activations: int, tolerance: float) -> None:
    folder = quantised_folder(kind)
    expected = reference(folder, activations).logits(IDS[:40])
    with open_context(folder, threads=1, activations=activations) as built:
        logits = built.logits(IDS[:40])
    # An activation at a rounding boundary may be rounded the other way, so compare the mean.
    assert np.abs(logits - expected).mean() < tolerance * np.abs(expected).mean()


def test_activations_of_16_bits_are_nearly_exact() -> None:
    folder = quantised_folder(KINDS[1])
    exact = Reference(folder.config, reference(folder).weights).logits(IDS[:40])
    errors = []
    for bits in (8, 16):
        with open_context(folder, threads=1, activations=bits) as built:
            errors.append(np.abs(built.logits(IDS[:40]) - exact).mean())
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize("kind", [*KINDS[:3], KINDS[8]], ids=str)
def test_with_16_bits_neither_chunks_nor_threads_matter(kind: tuple[str, int, bool]) -> None:
    folder = quantised_folder(kind)
    with open_context(folder, threads=1, context=256, activations=16) as built:
        expected = built.logits(IDS[:200])
    for threads in (1, 2):
        with open_context(folder, threads=threads, context=256, activations=16) as built:
            for chunk in (1, 2, 3, 5, 8, 33, 64):
                built.truncate(0)
                assert np.array_equal(built.extend(IDS[:200], chunk), expected)


def test_caches_of_other_activations_do_not_fit() -> None:
    folder = quantised_folder(KINDS[1])
    with open_context(folder, activations=8) as eight, open_context(folder, activations=16) as sixteen:
        eight.logits(IDS[:20])
        assert sixteen.copy_from(eight) == 0
        with pytest.raises(ValueError, match="another decoder"):
            sixteen.decoder.run(np.array(IDS[:1]), 0, 0, eight.cache)


@pytest.mark.parametrize("family", [{}, {"model_type": "qwen3", "head_dim": 64}], ids=["qwen2", "qwen3"])
def test_neither_chunks_nor_threads_nor_history_matter(family: dict[str, object]) -> None:
    folder = random_folder(config(**family))
    with open_context(folder, threads=1, context=1024) as built:
        expected = built.logits(IDS)
        for chunk in (1, 7, 8, 9, 64):
            built.truncate(0)
            assert np.array_equal(built.extend(IDS, chunk), expected)
        built.truncate(519)
        assert np.array_equal(built.extend(IDS[519:], 3), expected[519:])
    for threads in (2, 3, 4):
        with open_context(folder, threads=threads, context=1024) as built:
            assert np.array_equal(built.logits(IDS), expected)
            # Many steps of one token, in which some threads sit out, and longer steps between them.
            rng = np.random.default_rng(threads)
            built.truncate(0)
            start = 0
            while start < len(IDS):
                size = int(rng.choice([1, 1, 1, 1, 1, 2, 5, 17]))
                assert np.array_equal(built.extend(IDS[start : start + size]), expected[start : start + size])
                start += size


def test_non_finite_weights_raise_and_do_not_linger() -> None:
    folder = random_folder(config())
    good = folder.tensor("model.layers.0.mlp.up_proj.weight").parts["values"]
    with open_conversation(folder, threads=1, context=64) as built:
        expected = built.cached.logits(IDS[:8])
        kept = good[0, 0, 0]
        good[0, 0, 0] = np.nan
        with pytest.raises(NonFiniteLogitsError):
            list(generate(built, IDS[:8], GREEDY, seed=0, usable_vocab=301))
        good[0, 0, 0] = kept
        assert np.array_equal(built.cached.logits(IDS[:8]), expected)


def test_out_of_range_values_are_refused() -> None:
    folder = random_folder(config())
    for options in (
        {"threads": 0},
        {"threads": 257},
        {"context": 0},
        {"context": 4097},
        {"kv": "f16"},
        {"activations": 4},
    ):
        with pytest.raises(UsageError):
            build_decoder(folder, **options)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="head_dim is 48"):
        build_decoder(random_folder(config(hidden_size=192, num_attention_heads=4)))
    with open_context(folder, threads=1) as built, pytest.raises(ValueError, match="token ids"):
        built.logits([301])


def test_a_cache_that_does_not_fit_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_folder(config())
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000_000)
    needed = r"KV cache of 4,096 tokens needs 4 MiB of memory, but only 976\.6 KiB are free"
    with pytest.raises(NotEnoughMemoryError, match=needed), open_context(folder):
        pass
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    monkeypatch.setattr(np, "zeros", _no_memory)
    with pytest.raises(NotEnoughMemoryError, match=r"choose a smaller context$"):
        build_decoder(folder)


def _no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "context", "kind"),
    [(24, 2, 64, 4096, "f32"), (24, 2, 64, 16384, "q8"), (28, 4, 128, 1024, "f32"), (28, 4, 128, 4096, "q8")],
)
def test_the_kind_of_cache_follows_its_size(layers: int, kv_heads: int, head_dim: int, context: int, kind: str) -> None:
    heads = {"num_attention_heads": kv_heads, "num_key_value_heads": kv_heads, "hidden_size": kv_heads * head_dim}
    shape = config(num_hidden_layers=layers, **heads)
    assert choose_kv_kind("auto", shape, context) == kind
    assert choose_kv_kind("q8", shape, context) == "q8"
