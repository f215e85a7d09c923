"""Conversations that share a decoder: each one is the same as alone, however they take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwchat.cpu.build import build_decoder
from qwchat.cpu.decoder import CpuDecoder
from qwchat.events import EngineEvent, Finished, TokenStep
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.engine import Engine
from qwchat.model.decoder import Cache, CancelCheck
from qwchat.model.logit_rows import HostRow, LogitRow
from qwchat.request import Request
from tests.cpu.random_models import config, random_folder
from tests.generation.conversations import Conversation, generate
from tests.generation.test_speculative_replies import SETTINGS, VOCAB, Eager, prompt

TEXTS = [(prompt(1), SETTINGS[0], 3), (prompt(2), SETTINGS[3], 9)]
LONG = np.random.default_rng(5).integers(0, VOCAB, 150).tolist()


@pytest.fixture(params=["f32", "q8"])
def decoder(request: pytest.FixtureRequest) -> Iterator[CpuDecoder]:
    folder = random_folder(config(vocab_size=VOCAB), 1)
    with closing(build_decoder(folder, threads=2, context=320, kv=request.param)) as built:
        yield built


def reply(conversation: Conversation, number: int, speculate: bool) -> Iterator[EngineEvent]:
    """Generate the reply to prompt number `number`, with draft tokens or without."""
    ids, settings, seed = TEXTS[number]
    # One prompt takes several chunks, so that replies also alternate within prefill.
    ids = [*LONG, *ids] if number else ids
    return generate(conversation, ids, settings, seed=seed, usable_vocab=VOCAB, max_tokens=60, speculate=speculate)


def essence(event: EngineEvent) -> object:
    """Return an event without its times."""
    return (event.reason, event.stats.generated_tokens) if isinstance(event, Finished) else event


@pytest.mark.parametrize("speculate", [False, True], ids=["plain", "drafts"])
def test_two_conversations_interleaved_token_by_token(decoder: CpuDecoder, speculate: bool) -> None:
    engine = Engine(decoder)
    engine.draft_policy = Eager()
    alone = []
    for number in range(len(TEXTS)):
        conversation = Conversation(engine)
        alone.append(([essence(event) for event in reply(conversation, number, speculate)], conversation.cached.ids))
    conversations = [Conversation(engine) for _ in TEXTS]
    running = {number: reply(conversation, number, speculate) for number, conversation in enumerate(conversations)}
    found: list[list[object]] = [[] for _ in TEXTS]
    while running:
        for number, events in list(running.items()):
            event = next(events, None)
            if event is None:
                del running[number]
            else:
                found[number].append(essence(event))
    assert found == [events for events, _ in alone]
    assert min(sum(isinstance(event, TokenStep) for event in events) for events in found) == 60
    for conversation, (_, ids) in zip(conversations, alone, strict=True):
        assert np.array_equal(conversation.cached.ids, ids)
        # The caches also hold the keys and values of these tokens.
        fresh = CachedContext(decoder)
        fresh.extend(ids.tolist())
        assert np.array_equal(conversation.cached.extend([1, 2]), fresh.extend([1, 2]))


def test_a_context_copies_another(decoder: CpuDecoder) -> None:
    first, second = CachedContext(decoder), CachedContext(decoder)
    expected = first.logits(LONG)
    first.truncate(140)
    assert second.copy_from(first) == 140 == second.length
    assert np.array_equal(second.extend(LONG[140:]), expected[140:])
    assert np.array_equal(first.extend(LONG[140:]), expected[140:]), "the first is left as it was"


def test_caches_of_different_kinds_are_not_mixed() -> None:
    folder = random_folder(config(vocab_size=VOCAB), 1)
    with (
        closing(build_decoder(folder, threads=1, context=64, kv="f32")) as f32,
        closing(build_decoder(folder, threads=1, context=64, kv="q8")) as q8,
    ):
        first, second = CachedContext(f32), CachedContext(q8)
        first.extend(LONG[:20])
        assert second.copy_from(first) == 0 == second.length
        with pytest.raises(ValueError, match="another decoder"):
            next(Engine(q8).generate(first, [1], Request(SETTINGS[0], 0), usable_vocab=VOCAB))


class Inexact:
    """A decoder whose logits depend on how tokens are grouped into passes, as on a GPU."""

    exact_rows = 1

    def __init__(self, decoder: CpuDecoder) -> None:
        self._decoder, self.config, self.context, self.chunk = decoder, decoder.config, decoder.context, decoder.chunk
        self.threads, self.layers = decoder.threads, decoder.layers
        self.passes: list[int] = []
        self.embed, self.run_layers, self.head = decoder.embed, decoder.run_layers, decoder.head
        self.make_cache, self.close = decoder.make_cache, decoder.close

    def run(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> NDArray[np.float32]:
        self.passes.append(len(token_ids))
        logits = self._decoder.run(token_ids, position, logits_from, cache, cancelled)
        return logits + np.float32(len(token_ids) - 1)

    def run_rows(self, *arguments: Any) -> list[LogitRow]:
        return [HostRow(row) for row in self.run(*arguments)]


def test_drafts_are_for_decoders_whose_passes_do_not_matter(decoder: CpuDecoder) -> None:
    """Check that drafts are not used here, since the text would depend on them."""
    inexact = Inexact(decoder)
    engine = Engine(inexact)
    engine.draft_policy = Eager()
    found = [list(reply(Conversation(engine), 0, speculate))[:-1] for speculate in (False, True)]
    assert found[0] == found[1]
    assert set(inexact.passes) == {1, len(TEXTS[0][0])}
    exact = Conversation(Engine(decoder))
    exact.engine.draft_policy = Eager()
    end = list(reply(exact, 0, True))[-1]
    assert isinstance(end, Finished)
    assert end.stats.drafted_tokens > 0, "there is something to draft here"
