"""Sampling from the largest logits alone chooses what sampling from all of them chooses, or asks for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.generation.sampling import Sampler
from qwchat.model.logit_rows import HostRow, LargestLogits
from qwchat.request import SamplingParams

CHAT = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repeat_penalty=1.05)


class Row:
    """A row whose 64 largest logits a device has found; it counts how often all are asked for."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.asked = logits, 0

    def values(self) -> np.ndarray:
        self.asked += 1
        return self.logits

    def largest(self) -> LargestLogits | None:
        if not np.isfinite(self.logits).all():
            return None
        order = np.lexsort((np.arange(len(self.logits)), -self.logits))[:64]
        return LargestLogits(order, self.logits[order])


def draws(logits: np.ndarray, settings: SamplingParams, prompt: list[int], reply: list[int], usable: int) -> Row:
    """Assert that both ways draw the same tokens; return the row."""
    row = Row(logits)
    narrow, whole = (Sampler(settings, 5, usable) for _ in range(2))
    for count in range(len(reply) + 1):
        expected = whole.sample(logits, prompt, reply[:count])
        assert narrow.sample_row(row, prompt, reply[:count]) == expected
    assert narrow.draws_made == whole.draws_made
    return row


@given(
    st.integers(0, 10_000),
    st.sampled_from([70, 65, 64, 200, 3000]),
    st.sampled_from([1.0, 3.0, 40.0]),
    st.booleans(),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 1e-8]),
        top_k=st.sampled_from([0, 1, 5, 20, 63, 64, 65]),
        top_p=st.sampled_from([1.0, 0.8, 0.1]),
        min_p=st.sampled_from([0.0, 0.1]),
        repeat_penalty=st.sampled_from([1.0, 1.05, 2.0, 1e9, 0.9]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
    ),
)
def test_both_ways_draw_the_same(seed: int, size: int, scale: float, ties: bool, settings: SamplingParams) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(size) * scale).astype(np.float32)
    if ties:
        logits = np.rint(logits)
    best = np.argsort(-logits)[:30].tolist()
    prompt, reply = [*best[::2], *rng.integers(0, size, 20).tolist()], [*best[1:6], best[1]]
    draws(logits, settings, prompt, reply, size - int(rng.integers(0, 5)))


@pytest.mark.parametrize("settings", [CHAT, SamplingParams(temperature=0.0)])
def test_common_settings_read_no_whole_row(settings: SamplingParams) -> None:
    logits = (np.random.default_rng(1).standard_normal(152_064) * 3).astype(np.float32)
    best = np.argsort(-logits)[:10].tolist()
    assert draws(logits, settings, best[:5], best[5:], 151_646).asked == 0


@pytest.mark.parametrize(
    "settings",
    [
        SamplingParams(temperature=0.7, top_k=0, top_p=0.8),
        SamplingParams(temperature=0.7, top_k=65),
        SamplingParams(temperature=0.0, repeat_penalty=0.9),
        SamplingParams(temperature=0.0, frequency_penalty=0.1),
    ],
)
def test_other_settings_read_the_whole_row(settings: SamplingParams) -> None:
    logits = np.arange(300, dtype=np.float32)
    assert draws(logits, settings, [1], [], 300).asked == 1


def test_penalties_that_leave_too_few_candidates_read_the_whole_row() -> None:
    logits = np.zeros(300, np.float32)
    logits[:64] = 1
    assert draws(logits, SamplingParams(temperature=0.0, repeat_penalty=1e6), list(range(64)), [], 300).asked == 1
    logits[64] = 0.5
    assert draws(logits, SamplingParams(temperature=0.0, repeat_penalty=1.5), list(range(9)), [], 300).asked == 1
    logits[63] = 2
    assert draws(logits, SamplingParams(temperature=0.0, repeat_penalty=1.5), list(range(64)), [], 300).asked == 0


def test_a_constraint_reads_the_whole_row() -> None:
    row, allowed = Row(np.arange(300, dtype=np.float32)), np.zeros(38, np.uint8)
    allowed[1] = 1
    assert Sampler(CHAT, 1, 300).sample_row(row, [], [], allowed) == 8
    assert row.asked == 1


def test_a_row_of_the_host_is_sampled_as_a_whole() -> None:
    logits = np.arange(300, dtype=np.float32)
    assert Sampler(CHAT, 1, 300).sample_row(HostRow(logits), [], []) == Sampler(CHAT, 1, 300).sample(logits, [], [])
