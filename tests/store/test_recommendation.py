"""Which model is recommended for machines of several sizes and speeds, and for GPUs."""

from __future__ import annotations

import pytest

from qwchat.store.cards import find_card
from qwchat.store.recommendation import FLUENT, fitting_card, fitting_machine, recommend


@pytest.mark.parametrize(
    ("memory", "bandwidth", "largest", "recommended"),
    [
        (2_000_000_000, 20e9, "qwen2.5:1.5b", "qwen2.5:1.5b"),
        (4_000_000_000, 20e9, "qwen2.5:3b", "qwen2.5:3b"),
        (8_000_000_000, 40e9, "qwen2.5:7b", "qwen2.5:7b"),
        # An old machine: 7B fits, but is slow.
        (8_000_000_000, 15e9, "qwen2.5:7b", "qwen2.5:3b"),
        (16_000_000_000, 50e9, "qwen2.5:14b", "qwen2.5:14b"),
        (16_000_000_000, 35e9, "qwen2.5:14b", "qwen2.5:7b"),
        (32_000_000_000, 60e9, "qwen2.5:32b", "qwen2.5:14b"),
        (32_000_000_000, 100e9, "qwen2.5:32b", "qwen2.5:32b"),
        (32_000_000_000, None, "qwen2.5:32b", "qwen2.5:32b"),
        (128_000_000_000, 400e9, "qwen2.5:72b", "qwen2.5:72b"),
    ],
)
def test_machines(memory: int, bandwidth: float | None, largest: str, recommended: str) -> None:
    fitting = fitting_machine(memory, bandwidth)
    assert fitting[-1].name == largest
    assert all(model.needed <= memory * 2 / 3 for model in fitting)
    model = recommend(fitting)
    assert model is not None
    assert model.name == recommended
    assert model.tokens_per_second is None or model.tokens_per_second >= FLUENT


def test_a_machine_that_is_too_small_or_too_slow() -> None:
    assert recommend(fitting_machine(500_000_000)) is None
    slow = recommend(fitting_machine(16_000_000_000, 1e9))
    assert slow is not None
    assert (slow.name, slow.fluent) == ("qwen2.5:0.5b", False)


@pytest.mark.parametrize(
    ("card", "name"),
    [("3050", "qwen2.5:7b"), ("4070", "qwen2.5:14b"), ("4090", "qwen2.5:32b"), ("H200", "qwen2.5:72b")],
)
def test_cards(card: str, name: str) -> None:
    model = recommend(fitting_card(find_card(card)))
    assert model is not None
    assert model.name == name
    assert model.fluent
