"""A reply that was cut anywhere continues, token by token, as if it had not been cut, and its cache is reused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qwchat.events import EngineEvent, Finished, TokenStep
from qwchat.request import SamplingParams
from tests.generation.conversations import Conversation, generate, open_conversation
from tests.generation.test_speculative_replies import SETTINGS, VOCAB, Eager, folder, prompt

LENGTH = 70


@pytest.fixture(scope="module", params=[("f32", 8), ("q8", 8), ("f32", 16)], ids=str)
def conversation(request: pytest.FixtureRequest) -> Iterator[Conversation]:
    kv, activations = request.param
    options = {"threads": 2, "context": 192, "kv": kv, "activations": activations}
    with open_conversation(folder(1, activations), **options) as built:
        built.engine.draft_policy = Eager()
        yield built


def run(
    conversation: Conversation, ids: list[int], settings: SamplingParams, **options: Any
) -> tuple[list[int], Finished]:
    found: list[EngineEvent] = list(
        generate(conversation, ids, settings, **{"seed": 7, "usable_vocab": VOCAB} | options)
    )
    end = found[-1]
    assert isinstance(end, Finished)
    return [event.token_id for event in found if isinstance(event, TokenStep)], end


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "penalties", "warm", "all", "repeating"])
def test_cut_by_length_and_continued(conversation: Conversation, settings: SamplingParams, speculate: bool) -> None:
    ids = prompt(5)
    conversation.cached.truncate(0)
    whole, _ = run(conversation, ids, settings, max_tokens=LENGTH)
    for cut in (1, 2, 23, 40, LENGTH - 1):
        before, end = run(conversation, ids, settings, max_tokens=cut, speculate=speculate)
        assert (before, end.reason) == (whole[:cut], "length")
        after, end = run(
            conversation,
            [*ids, *before],
            settings,
            max_tokens=LENGTH - cut,
            speculate=speculate,
            continued=cut,
        )
        assert before + after == whole
        assert end.stats.generated_tokens == LENGTH - cut
        assert end.stats.prompt_tokens == len(ids) + cut
        # Only the last token before the cut had not been evaluated; nothing is evaluated twice.
        assert end.stats.cached_tokens == len(ids) + cut - 1


@pytest.mark.parametrize("speculate", [False, True])
def test_cancelled_many_times_at_any_token(conversation: Conversation, speculate: bool) -> None:
    ids, settings = prompt(6), SETTINGS[3]
    conversation.cached.truncate(0)
    whole, _ = run(conversation, ids, settings, max_tokens=LENGTH)
    rng = np.random.default_rng(3)
    generated: list[int] = []
    while len(generated) < LENGTH:
        wanted = min(int(rng.integers(1, 9)), LENGTH - len(generated))
        found: list[int] = []
        events = generate(
            conversation,
            [*ids, *generated],
            settings,
            seed=7,
            usable_vocab=VOCAB,
            cancel=lambda limit=wanted, found=found: len(found) >= limit,  # type: ignore[misc]
            speculate=speculate,
            continued=len(generated),
        )
        for event in events:
            if isinstance(event, TokenStep):
                found.append(event.token_id)
            elif isinstance(event, Finished):
                assert event.reason == "cancelled"
                assert event.stats.cached_tokens == (len(ids) + len(generated) - 1 if generated else len(ids) - 1)
        generated += found
    assert generated == whole


def test_a_reply_that_filled_the_context_is_continued_in_a_longer_one() -> None:
    ids, model = prompt(2), folder(1, 8)
    with (
        open_conversation(model, threads=1, context=64) as short,
        open_conversation(model, threads=1, context=96) as long,
    ):
        whole, _ = run(long, ids, SETTINGS[2], max_tokens=50)
        before, end = run(short, ids, SETTINGS[2])
        assert end.reason == "context"
        assert before == whole[: 64 - len(ids) + 1]
        after, _ = run(long, [*ids, *before], SETTINGS[2], max_tokens=50 - len(before), continued=len(before))
        assert before + after == whole


def test_an_endless_loop_is_ended_and_can_be_continued(conversation: Conversation) -> None:
    ids, greedy = prompt(3), SETTINGS[0]
    conversation.cached.truncate(0)
    whole, end = run(conversation, ids, greedy)
    assert end.reason == "context"
    for speculate in (False, True):
        cut, end = run(conversation, ids, greedy, loop_guard=40, speculate=speculate)
        assert end.reason == "repetition"
        assert 40 < len(cut) < len(whole)
        assert cut == whole[: len(cut)]
        after, end = run(conversation, [*ids, *cut], greedy, loop_guard=1000, continued=len(cut), speculate=speculate)
        assert cut + after == whole
        assert end.reason == "context"
