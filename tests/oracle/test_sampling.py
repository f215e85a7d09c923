"""Distributions, compared with transformers' logits processors in the order in which `generate` applies them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from qwchat.generation.sampling import Sampler
from qwchat.request import SamplingParams

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QWEN2_TOKENS = 151_646


def processors(settings: SamplingParams) -> Any:
    """Return the processors that `generate` builds for these settings."""
    chain = transformers.LogitsProcessorList()
    if settings.repeat_penalty != 1.0:
        chain.append(transformers.RepetitionPenaltyLogitsProcessor(settings.repeat_penalty))
    chain.append(transformers.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chain.append(transformers.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        chain.append(transformers.TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        chain.append(transformers.MinPLogitsWarper(settings.min_p))
    return chain


def reference(values: np.ndarray, settings: SamplingParams, token_ids: np.ndarray) -> np.ndarray:
    scores = processors(settings)(torch.tensor(token_ids)[None], torch.tensor(values)[None])
    probabilities: np.ndarray = torch.softmax(scores.double(), -1)[0].numpy()
    return probabilities


def ours(values: np.ndarray, settings: SamplingParams, prompt: np.ndarray, reply: np.ndarray) -> np.ndarray:
    ids, probabilities = Sampler(settings, 0, len(values)).distribution(values, prompt, reply)
    result = np.zeros(len(values))
    result[ids] = probabilities
    return result


def random_settings(dice: np.random.Generator, size: int) -> SamplingParams:
    return SamplingParams(
        temperature=float(dice.choice([0.01, 0.3, 0.7, 1.0, 2.0, 5.0])),
        top_k=int(dice.choice([0, 1, 5, 20, 50, size + 3])),
        top_p=float(dice.choice([1.0, 0.95, 0.8, 0.5, 0.1, 0.01, 1e-6])),
        min_p=float(dice.choice([0.0, 0.0, 0.05, 0.5, 1.0])),
        repeat_penalty=float(dice.choice([1.0, 1.05, 1.3, 0.8])),
    )


@pytest.mark.parametrize("size", [2, 50, 1000, 4096, QWEN2_TOKENS])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 30.0])
def test_random_logits(size: int, scale: float) -> None:
    dice = np.random.default_rng([size, int(scale * 10)])
    for _ in range(5 if size == QWEN2_TOKENS else 25):
        values = (dice.standard_normal(size) * scale).astype(np.float32)
        settings = random_settings(dice, size)
        prompt, reply = dice.integers(0, size, 30), dice.integers(0, size, 10)
        expected = reference(values, settings, np.concatenate([prompt, reply]))
        found = ours(values, settings, prompt, reply)
        assert ((found > 0) == (expected > 0)).all(), settings
        np.testing.assert_allclose(found, expected, atol=1e-7, rtol=1e-5, err_msg=str(settings))


def test_ties() -> None:
    """Check how many tied tokens stay at the edge of top-p.

    Which of them stay depends on transformers' sort.
    """
    dice = np.random.default_rng(9)
    for size, step in itertools.product([5, 50, 1000], [0.5, 2.0, 100.0]):
        for _ in range(15):
            values = (np.round(dice.standard_normal(size) * 3 / step) * step).astype(np.float32)
            settings = random_settings(dice, size)
            prompt, reply = dice.integers(0, size, 30), dice.integers(0, size, 10)
            expected = reference(values, settings, np.concatenate([prompt, reply]))
            found = ours(values, settings, prompt, reply)
            np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-7, err_msg=str(settings))
            if settings.top_p == 1.0:
                np.testing.assert_allclose(found, expected, atol=1e-7, err_msg=str(settings))


@pytest.mark.parametrize("values", [[1e30, -1e30, 0.0, 5.0], [80.0, 79.9, -80.0, 0.0], [1e-30, -1e-30, 0.0, 1e-38]])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 5.0])
def test_extreme_values(values: list[float], temperature: float) -> None:
    for top_k, top_p, min_p in itertools.product([0, 2], [1.0, 0.6], [0.0, 0.3]):
        settings = SamplingParams(temperature, top_k, top_p, min_p, repeat_penalty=1.3)
        array = np.array(values, np.float32)
        prompt, reply = np.array([0, 1, 1]), np.array([2])
        expected = reference(array, settings, np.concatenate([prompt, reply]))
        np.testing.assert_allclose(np.sort(ours(array, settings, prompt, reply)), np.sort(expected), atol=1e-7)


def test_the_order_is_that_of_generate() -> None:
    """Check that a model itself builds the same steps.

    The settings are the published ones of Qwen2, also with min-p.
    """
    settings = SamplingParams(0.7, top_k=20, top_p=0.8, min_p=0.05, repeat_penalty=1.05)
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    generation = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.05
    )
    model = transformers.Qwen2ForCausalLM(config)
    built = model._get_logits_processor(generation_config=generation, input_ids_seq_length=1)
    assert [type(step) for step in built] == [type(step) for step in processors(settings)]


def test_greedy_equals_the_reference() -> None:
    dice = np.random.default_rng(4)
    for _ in range(20):
        values = dice.standard_normal(4096).astype(np.float32) * 3
        ids = dice.integers(0, 4096, 400)
        penalty = transformers.RepetitionPenaltyLogitsProcessor(1.3)
        expected = int(penalty(torch.tensor(ids)[None], torch.tensor(values)[None]).argmax())
        assert Sampler(SamplingParams(repeat_penalty=1.3), 0, 4096).sample(values, ids[:200], ids[200:]) == expected
