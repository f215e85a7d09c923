"""A mask decides which tokens may be chosen, with and without speculation, and ends a reply that is complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from qwchat.errors import ConstraintError
from qwchat.events import Finished, TokenStep
from qwchat.generation.sampling import log_probabilities
from qwchat.generation.speculation import DraftPolicy
from qwchat.request import SamplingParams
from tests.cpu.random_models import config, random_folder
from tests.generation.conversations import Conversation, generate, open_conversation

VOCAB = 41
STOP = 40
GREEDY = SamplingParams()
SETTINGS = [GREEDY, SamplingParams(temperature=0.7, top_k=20, top_p=0.9), SamplingParams(repeat_penalty=1.3)]
PROMPT = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


class Eager(DraftPolicy):
    """A policy that always drafts as many tokens as it can, whether that pays or not."""

    def draft_length(self, length: int) -> int:
        return 7


@dataclass
class Mask:
    """A mask whose tokens, two by two, must not add up to a multiple of three.

    Every fifth and sixth token is forced, and the reply is complete after `last` tokens. With `closing`, a reply that
    would be cut is completed by token 7 instead.
    """

    last: int = 1000
    closing: bool = False
    generated: list[int] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)
    completing: bool = False
    done: bool = False

    def _ids(self, generated: Sequence[int]) -> list[int]:
        if len(generated) % 6 in (4, 5):
            return [len(generated) % 6]
        return [token for token in range(STOP) if not generated or (token + generated[-1]) % 3]

    def allowed(self) -> NDArray[np.uint8]:
        bits = np.zeros(48, bool)
        bits[self._ids(self.generated)] = True
        return np.packbits(bits, bitorder="little")

    def accept(self, token: int, room: int) -> int | None:
        assert token in self._ids(self.generated)
        if self.last == -1 and len(self.generated) == 4:
            return None
        if self.closing and room == 1:
            token, self.completing = 7, True
        self.generated.append(token)
        return token

    def forced_tokens(self) -> list[int]:
        forced: list[int] = []
        while len(ids := self._ids(self.generated + forced)) == 1:
            forced += ids
        return forced

    def count_allowed(self, tokens: Sequence[int]) -> int:
        self.asked.append(list(tokens))
        count = 0
        while count < len(tokens) and tokens[count] in self._ids([*self.generated, *tokens[:count]]):
            count += 1
        return count

    @property
    def finished(self) -> bool:
        return self.completing or len(self.generated) >= self.last


@pytest.fixture(scope="module")
def conversation() -> Iterator[Conversation]:
    with open_conversation(random_folder(config(vocab_size=VOCAB), 0), threads=2, context=192) as built:
        built.engine.draft_policy = Eager()
        yield built


def run(
    conversation: Conversation, mask: Mask | None, settings: SamplingParams = GREEDY, **options: object
) -> tuple[list[int], Finished]:
    conversation.cached.truncate(0)
    values = {"seed": 3, "usable_vocab": VOCAB, "stop_ids": frozenset([STOP]), **options}
    *events, end = generate(conversation, PROMPT, settings, mask=mask, **values)  # type: ignore[arg-type]
    assert isinstance(end, Finished)
    return [event.token_id for event in events if isinstance(event, TokenStep)], end


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "warm", "penalties"])
def test_the_text_is_the_same_with_and_without_speculation(
    conversation: Conversation, settings: SamplingParams
) -> None:
    accepted = 0
    for seed in range(6):
        plain, first = run(conversation, Mask(), settings, seed=seed, max_tokens=80)
        mask = Mask()
        found, end = run(conversation, mask, settings, seed=seed, max_tokens=80, speculate=True)
        assert found == plain == mask.generated
        assert (end.reason, len(found)) == (first.reason, 80)
        accepted += end.stats.accepted_tokens
        assert conversation.cached.ids.tolist() == [*PROMPT, *found[:-1]]
    assert accepted > 100


def test_only_allowed_tokens_are_chosen(conversation: Conversation) -> None:
    hot = SamplingParams(temperature=5.0)
    unbound, _ = run(conversation, None, hot, max_tokens=60)
    bound, _ = run(conversation, Mask(), hot, max_tokens=60, speculate=True)
    assert any((a + b) % 3 == 0 for a, b in pairwise(unbound))
    for place, token in enumerate(bound):
        assert token == place % 6 if place % 6 in (4, 5) else place == 0 or (token + bound[place - 1]) % 3


def test_drafts_that_it_rules_out_are_not_evaluated(conversation: Conversation) -> None:
    mask = Mask()
    _, end = run(conversation, mask, max_tokens=80, speculate=True)
    assert any(mask.asked)
    assert end.stats.drafted_tokens > end.stats.accepted_tokens > 0


def test_forced_tokens_are_drafts(conversation: Conversation) -> None:
    previous, conversation.engine.draft_policy = conversation.engine.draft_policy, DraftPolicy()
    try:
        _, end = run(conversation, Mask(), seed=1, max_tokens=60, speculate=True)
    finally:
        conversation.engine.draft_policy = previous
    assert end.stats.accepted_tokens >= 18  # Two of every six tokens are forced.


@pytest.mark.parametrize("speculate", [False, True])
def test_the_reply_ends_where_nothing_can_follow(conversation: Conversation, speculate: bool) -> None:
    for last in (0, 1, 5, 6, 20):
        found, end = run(conversation, Mask(last), speculate=speculate)
        assert (len(found), end.reason) == (last, "stop")
    found, end = run(conversation, Mask(6), speculate=speculate, max_tokens=6)
    assert (len(found), end.reason) == (6, "stop")
    found, end = run(conversation, Mask(6), speculate=speculate, max_tokens=5)
    assert (len(found), end.reason) == (5, "length")


@pytest.mark.parametrize("speculate", [False, True])
def test_the_mask_may_bring_the_reply_to_an_end(conversation: Conversation, speculate: bool) -> None:
    found, end = run(conversation, Mask(closing=True), speculate=speculate, max_tokens=30)
    assert (len(found), found[-1], end.reason) == (30, 7, "length")
    found, end = run(conversation, Mask(closing=True), speculate=speculate)
    assert (len(found), found[-1], end.reason) == (conversation.engine.decoder.context + 1 - len(PROMPT), 7, "context")


@pytest.mark.parametrize("speculate", [False, True])
def test_the_mask_may_end_the_reply_before_a_token(conversation: Conversation, speculate: bool) -> None:
    class Ending(Mask):
        finished = False

    found, end = run(conversation, Ending(-1), speculate=speculate, max_tokens=9)
    assert (len(found), end.reason) == (4, "length")
    assert conversation.cached.ids.tolist()[: len(PROMPT) + 3] == [*PROMPT, *found[:3]]


def test_nothing_allowed_is_an_error(conversation: Conversation) -> None:
    class Closed(Mask):
        def allowed(self) -> NDArray[np.uint8]:
            return np.zeros(6, np.uint8)

    with pytest.raises(ConstraintError, match="allows no token here"):
        run(conversation, Closed())


def test_log_probabilities_are_those_of_the_model(conversation: Conversation) -> None:
    conversation.cached.truncate(0)
    warm = SamplingParams(temperature=2.0, top_k=3, repeat_penalty=1.5)
    events = list(
        generate(conversation, PROMPT, warm, seed=3, usable_vocab=VOCAB, mask=Mask(), logprobs=4, max_tokens=5)
    )
    steps = [event for event in events if isinstance(event, TokenStep)]
    tokens = [step.token_id for step in steps]
    logits = conversation.cached.logits([*PROMPT, *tokens])[len(PROMPT) - 1 : -1]
    for step, row in zip(steps, logits.astype(np.float64), strict=True):
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert step.logprob == pytest.approx(expected[step.token_id], abs=1e-5)
        best = np.argsort(-row, kind="stable")[:4]
        assert [token for token, _ in step.likeliest] == best.tolist()
        assert [value for _, value in step.likeliest] == pytest.approx(expected[best], abs=1e-5)


def test_ties_among_the_likeliest_go_to_the_lower_id() -> None:
    logits = np.array([0, 2, 1, 2, 1, 1, 1], np.float32)
    value, top = log_probabilities(logits, 0, 3)
    assert [token for token, _ in top] == [1, 3, 2]
    total = np.log(np.exp(logits.astype(float)).sum())
    assert value == pytest.approx(-total)
    assert [each for _, each in top] == pytest.approx([2 - total, 2 - total, 1 - total])
    assert log_probabilities(logits, 1, 0) == (pytest.approx(2 - total), [])
    assert len(log_probabilities(logits, 1, 20)[1]) == 7
