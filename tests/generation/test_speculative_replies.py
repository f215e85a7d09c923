"""Speculation changes only when tokens come: the tokens, the ends and the cache are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.events import EngineEvent, Finished, TokenStep
from qwchat.generation.generation_loop import Drafter
from qwchat.generation.sampling import Sampler
from qwchat.generation.speculation import DraftPolicy
from qwchat.request import SamplingParams
from tests.cpu.kernels.random_tensors import Folder
from tests.cpu.random_models import config, quantised, random_folder
from tests.generation.conversations import Conversation, generate, open_conversation
from tests.tiers import count

VOCAB = 41
GREEDY = SamplingParams()
SETTINGS = [
    GREEDY,
    SamplingParams(repeat_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repeat_penalty=1.05),
    SamplingParams(temperature=0.1, presence_penalty=-1.0),
]


class Eager(DraftPolicy):
    """A policy that always drafts as many tokens as it can, whether that pays or not."""

    def draft_length(self, length: int) -> int:
        return 7


def folder(seed: int, activations: int) -> Folder:
    """Return a random model, whose weights are quantised if its activations are not the default."""
    floats = random_folder(config(vocab_size=VOCAB), seed)
    return floats if activations == 8 else quantised(floats, "q8")


@pytest.fixture(scope="module", params=[(0, "f32", 8), (1, "f32", 8), (2, "q8", 8), (1, "f32", 16)], ids=str)
def conversation(request: pytest.FixtureRequest) -> Iterator[Conversation]:
    seed, kv, activations = request.param
    options = {"threads": 2, "context": 192, "kv": kv, "activations": activations}
    with open_conversation(folder(seed, activations), **options) as built:
        built.engine.draft_policy = Eager()
        yield built


def steps(found: list[EngineEvent]) -> list[int]:
    return [event.token_id for event in found if isinstance(event, TokenStep)]


def both(
    conversation: Conversation, ids: list[int], settings: SamplingParams, **options: Any
) -> tuple[list[int], Finished]:
    """Return tokens and end with speculation, after a check that they and the cache equal those without it."""
    options = {"seed": 7, "usable_vocab": VOCAB} | options
    conversation.cached.truncate(0)
    plain = list(generate(conversation, ids, settings, **options))
    cached = conversation.cached.ids
    conversation.cached.truncate(0)
    found = list(generate(conversation, ids, settings, speculate=True, **options))
    end, expected = found[-1], plain[-1]
    assert isinstance(end, Finished)
    assert isinstance(expected, Finished)
    assert steps(found) == steps(plain)
    assert end.reason == expected.reason
    assert end.stats.generated_tokens == expected.stats.generated_tokens
    assert np.array_equal(conversation.cached.ids, cached)
    return steps(found), end


def prompt(seed: int, repeated: bool = True) -> list[int]:
    """Return random ids, which a second half repeats with a few changes."""
    rng = np.random.default_rng(seed)
    half = rng.integers(0, VOCAB, 20).tolist()
    again = [token if rng.random() < 0.8 else int(rng.integers(VOCAB)) for token in half]
    return half + again if repeated else half


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "penalties", "warm", "all", "repeating"])
def test_the_text_is_the_same(conversation: Conversation, settings: SamplingParams) -> None:
    accepted = drafted = 0
    for seed in range(count(12, 4)):
        _, end = both(conversation, prompt(seed), settings, seed=seed, max_tokens=90)
        accepted += end.stats.accepted_tokens
        drafted += end.stats.drafted_tokens
    assert drafted > count(50, 10)
    assert 0 < accepted <= drafted


def test_the_cache_holds_what_a_fresh_one_would(conversation: Conversation) -> None:
    tokens, end = both(conversation, prompt(3), GREEDY, max_tokens=70)
    assert end.stats.accepted_tokens > 20
    ids = [*prompt(3), *tokens]
    following = conversation.cached.extend(ids[conversation.cached.length :])
    assert np.array_equal(following[-1], conversation.cached.logits(ids)[-1])


def test_the_default_policy_keeps_the_text_too(conversation: Conversation) -> None:
    previous, conversation.engine.draft_policy = conversation.engine.draft_policy, DraftPolicy()
    try:
        for seed in range(6):
            both(conversation, prompt(seed), SETTINGS[seed % len(SETTINGS)], max_tokens=120)
    finally:
        conversation.engine.draft_policy = previous


def looping(conversation: Conversation) -> tuple[list[int], list[int]]:
    """Return a prompt and its greedy reply, most of which is accepted drafts."""
    for seed in range(40):
        tokens, end = both(conversation, prompt(seed), GREEDY, max_tokens=60)
        if end.stats.accepted_tokens > 35:
            return prompt(seed), tokens
    raise AssertionError("no prompt leads into a loop")


def test_ends_inside_an_accepted_draft(conversation: Conversation) -> None:
    ids, tokens = looping(conversation)
    for length in range(30, 60):
        _, end = both(conversation, ids, GREEDY, max_tokens=length)
        assert (end.reason, end.stats.generated_tokens) == ("length", length)
    for stop in set(tokens[40:48]):
        first = tokens.index(stop)
        found, end = both(conversation, ids, GREEDY, stop_ids=frozenset([stop]), max_tokens=60)
        assert (end.reason, found) == ("stop", tokens[:first])


def test_stop_tokens_are_not_drafted_and_the_limit_is_kept() -> None:
    text = np.array([1, 2, 3, 4, 9, 5, 1, 2, 3])
    assert Drafter(text, Eager(), frozenset()).draft(7) == [4, 9, 5, 1, 2, 3, 4]
    assert Drafter(text, Eager(), frozenset([9])).draft(7) == [4]
    assert Drafter(text, Eager(), frozenset()).draft(2) == [4, 9]
    assert Drafter(text, Eager(), frozenset()).draft(-1) == []
    assert Drafter(text[:-1], DraftPolicy(), frozenset()).draft(7) == []


def test_the_context_fills_to_the_last_position(conversation: Conversation) -> None:
    ids, _ = looping(conversation)
    for extra in range(8):
        found, end = both(conversation, [*ids[:8], *ids[:extra], *ids[8:]], GREEDY)
        assert end.reason == "context"
        assert conversation.cached.length == conversation.engine.decoder.context
        assert len(ids) + extra + len(found) == conversation.engine.decoder.context + 1


def test_cancel_and_dropping_anywhere(conversation: Conversation) -> None:
    ids, tokens = looping(conversation)
    for number in (1, 2, 30, 41, 42, 43, 44, 45, 46, 47):
        for drop in (True, False):
            conversation.cached.truncate(0)
            seen: list[int] = []
            run = generate(
                conversation,
                ids,
                GREEDY,
                seed=7,
                usable_vocab=VOCAB,
                speculate=True,
                cancel=lambda: len(seen) >= number,  # noqa: B023
            )
            for event in run:
                if isinstance(event, TokenStep):
                    seen.append(event.token_id)
                    assert conversation.cached.ids.tolist() == [*ids, *seen[:-1]]
                    if drop and len(seen) == number:
                        break
            if not drop:
                assert isinstance(event, Finished)
                assert event.reason == "cancelled"
            assert seen == tokens[:number]
            assert conversation.cached.ids.tolist() == [*ids, *seen[:-1]]
            both_after = conversation.cached.extend(seen[-1:])[-1]
            assert np.array_equal(both_after, conversation.cached.logits([*ids, *seen])[-1])


def test_drafts_are_dropped_after_truncating(conversation: Conversation) -> None:
    ids = np.array(prompt(0), np.int64)
    conversation.cached.truncate(0)
    conversation.cached.evaluate(ids, len(ids), 30)
    assert conversation.cached.length == 30
    assert conversation.cached.accept(int(ids[30]))
    assert not conversation.cached.accept(int(ids[31]) + 1)
    conversation.cached.truncate(31)
    assert not conversation.cached.accept(int(ids[31]))
    assert conversation.cached.ids.tolist() == ids[:31].tolist()


@pytest.mark.slow
@settings(max_examples=count(20, 10))
@given(st.integers(0, 2**32), st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=5), st.integers(0, 4))
def test_a_draft_is_accepted_as_often_as_it_is_likely(seed: int, logits: list[float], draft: int) -> None:
    """Check that drawing and comparing is rejection sampling.

    P(accepted) = p(draft), and all tokens are distributed as p.
    """
    draws = 4000
    sampling = SamplingParams(temperature=1.0)
    sampler = Sampler(sampling, seed, len(logits))
    row = np.array(logits, np.float32)
    ids, expected = sampler.distribution(row, [], [])
    draft %= len(ids)
    drawn = np.array([sampler.sample(row, [], []) for _ in range(draws)])
    counts = np.bincount(drawn, minlength=len(ids))
    deviation = 5 * np.sqrt(draws * expected * (1 - expected)) + 1
    assert (np.abs(counts - draws * expected) < deviation).all()
    rejected = drawn[drawn != draft]
    rest = np.delete(expected, draft) / (1 - expected[draft])
    found = np.delete(np.bincount(rejected, minlength=len(ids)), draft)
    statistic = (np.square(found - len(rejected) * rest) / np.maximum(len(rejected) * rest, 1e-9)).sum()
    # Chi-square with up to three degrees of freedom: 40 is exceeded once in 1e8.
    assert statistic < 40 or len(rejected) * rest.min() < 5
