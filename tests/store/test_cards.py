"""Cards by name, and what a card holds of a model."""

from __future__ import annotations

import re

import pytest

from qwchat.errors import UsageError
from qwchat.store.cards import Card, common_cards, find_card
from qwchat.store.catalogue import find_entry
from qwchat.store.gpu_estimate import GpuEstimate
from qwchat.store.memory_estimate import MemoryEstimate, estimate, planned_tensors


def estimates(name: str = "qwen2.5:7b", preset: str = "q4", context: int = 4096) -> tuple[MemoryEstimate, GpuEstimate]:
    entry = find_entry(name)
    assert entry is not None
    tensors = planned_tensors(entry.config, preset)
    cpu = estimate(entry.config, tensors, context)
    return cpu, GpuEstimate(entry.config, tensors, cpu)


def test_the_table() -> None:
    cards = common_cards()
    assert 20 <= len(cards) == len({card.name for card in cards})
    assert [card.memory for card in cards] == sorted(card.memory for card in cards)
    assert cards[0].memory == pytest.approx(6 << 30, rel=0.03)
    assert cards[-1].memory > 180e9
    for card in cards:
        # A name that says how much memory there is says what the table says.
        if named := re.search(r"(\d+)GB", card.name):
            assert card.memory == pytest.approx(int(named[1]) << 30, rel=0.03)
        assert card.bandwidth is not None
        assert 100e9 < card.bandwidth < 1e13


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx3060", "RTX 3060"),
        ("3060", "RTX 3060"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100 80GB", "A100 80GB"),
        ("h100", "H100 SXM"),
    ],
)
def test_names(text: str, name: str) -> None:
    assert find_card(text).name == name


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a100", "did you mean A100 40GB, A100 80GB?"),
        ("RTX 4091", "did you mean RTX 4090"),
        ("", "choose from RTX 3050 6GB"),
        ("\x1b[31m", "choose from"),
    ],
)
def test_a_name_that_is_not_there(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(hint)):
        find_card(text)


def test_a_card_that_holds_the_whole_model() -> None:
    _, gpu = estimates()
    offload = gpu.offload(find_card("4090"), None)
    assert (offload.layers, offload.whole) == (28, True)
    # The embedding is not read. It has 8.25 bits on the card.
    assert gpu.bytes_per_token == pytest.approx(gpu.memory.weights - 562e6 + gpu.memory.cache, rel=0.001)
    assert offload.tokens_per_second == pytest.approx(1008e9 / gpu.bytes_per_token)


def test_a_card_that_holds_some_layers() -> None:
    cpu, gpu = estimates()
    card = Card("half", 3 << 30, 400e9)
    offload = gpu.offload(card, 20e9)
    assert 10 < offload.layers < 20
    assert not offload.whole
    alone = 20e9 / cpu.bytes_per_token
    assert offload.tokens_per_second is not None
    assert alone < offload.tokens_per_second < 400e9 / gpu.bytes_per_token
    # If the embedding does not fit, one layer stays on the CPU.
    offload = gpu.offload(Card("nearly", gpu.memory.total - 1, 400e9), 20e9)
    assert (offload.layers, offload.whole) == (27, False)
    # Without a bandwidth there is no speed.
    assert gpu.offload(card, None).tokens_per_second is None
    assert gpu.offload(Card("dark", card.memory, None), 20e9).tokens_per_second is None


def test_a_card_that_is_too_small() -> None:
    _, gpu = estimates("qwen2.5:72b", context=32768)
    offload = gpu.offload(Card("tiny", 2 << 30, 100e9), 20e9)
    assert (offload.layers, offload.whole, offload.tokens_per_second) == (0, False, None)
    assert gpu.smallest([card for card in common_cards() if card.memory < 40e9]) is None


def test_the_smallest_card() -> None:
    _, gpu = estimates("qwen2.5:0.5b")
    assert gpu.smallest(common_cards()) == common_cards()[0]
    _, gpu = estimates("qwen2.5:7b", "q8")
    assert gpu.smallest(common_cards()) == find_card("RTX 3080")
