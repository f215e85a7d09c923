"""KV caches of the latest conversations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import qwchat
from qwchat.errors import NotEnoughMemoryError
from qwchat.request import Prompt, Request, SamplingParams
from qwchat.server.kept_contexts import KeptContexts
from tests.server.serving import serving

A, B, C = range(100, 160), range(160, 230), range(230, 290)


@pytest.fixture
def fresh(mini: qwchat.Model) -> qwchat.Model:
    mini.cached_context.clear()
    return mini


def ask(model: qwchat.Model, kept: KeptContexts, ids: Sequence[int]) -> int:
    """Generate two tokens after a prompt; return how many of its tokens were cached."""
    prompt, request = Prompt(list(ids)), Request(SamplingParams(), 0, max_tokens=2)
    found = list(model.stream(prompt, request, cached_context=kept.choose(prompt.ids)))[-1]
    assert isinstance(found, qwchat.events.Done)
    return found.stats.cached_tokens


def test_each_conversation_keeps_its_cache(fresh: qwchat.Model) -> None:
    kept = KeptContexts(fresh, 3)
    assert [ask(fresh, kept, ids) for ids in (A, B, C)] == [0, 0, 0]
    assert kept.count == 3
    assert [ask(fresh, kept, [*ids, 5, 6, 7]) for ids in (C, A, B)] == [60, 60, 70]
    assert kept.count == 3
    assert kept.tokens == 63 + 63 + 73 + 3


def test_the_least_recently_used_cache_is_given_up(fresh: qwchat.Model) -> None:
    kept = KeptContexts(fresh, 2)
    assert [ask(fresh, kept, ids) for ids in (A, B, A, C)] == [0, 0, 59, 0]
    assert [ask(fresh, kept, ids) for ids in (A, C, B)] == [59, 59, 0]


def test_a_common_beginning_is_copied(fresh: qwchat.Model) -> None:
    # Both conversations go on, each in a cache of its own, and their tokens are those without a cache.
    kept = KeptContexts(fresh, 2)
    first, second = [*A, *B], [*A, *C]
    assert [ask(fresh, kept, first), ask(fresh, kept, second)] == [0, 60]
    assert [ask(fresh, kept, [*first, 5]), ask(fresh, kept, [*second, 5])] == [130, 120]
    alone = KeptContexts(fresh, 1)
    request = Request(SamplingParams(), 0, max_tokens=20)
    for ids in ([*first, 5], [*second, 5]):
        cached, new = kept.choose(ids), alone.choose(ids)
        new.truncate(0)
        replies = [list(fresh.stream(Prompt(ids), request, cached_context=each))[-1] for each in (cached, new)]
        assert replies[0].token_ids == replies[1].token_ids  # type: ignore[union-attr]


def test_one_cache_is_enough(fresh: qwchat.Model) -> None:
    kept = KeptContexts(fresh, 1)
    assert [ask(fresh, kept, ids) for ids in (A, [*A, 5], [*A, *B], B)] == [0, 60, 60, 0]
    assert kept.count == 1


def test_without_memory_for_another_cache_one_is_used_again(
    fresh: qwchat.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise NotEnoughMemoryError("full")

    monkeypatch.setattr(fresh, "make_context", refuse)
    kept = KeptContexts(fresh, 4)
    assert [ask(fresh, kept, ids) for ids in (A, B, B)] == [0, 0, 69]
    assert kept.count == 1


def test_another_decoder_brings_another_cache(fresh: qwchat.Model) -> None:
    kept = KeptContexts(fresh, 4)
    assert [ask(fresh, kept, ids) for ids in (A, B)] == [0, 0]
    fresh.reconfigure(threads=1, context=512)
    assert kept.choose(A) is fresh.cached_context
    assert kept.count == 1


def test_the_next_turn_evaluates_only_its_own_tokens(fresh: qwchat.Model) -> None:
    with serving(fresh, keep=2) as running:
        conversations: list[list[dict[str, str]]] = [
            [{"role": "user", "content": text}] for text in ("What can you do?", "What is Qwen2?")
        ]
        for turn in range(2):
            for messages in conversations:
                found = running.post("/v1/chat/completions", messages=messages, temperature=0)
                if turn:
                    assert found["timings"]["prompt_n"] < 20
                    assert found["timings"]["cache_n"] > 40
                messages.append({"role": "assistant", "content": found["choices"][0]["message"]["content"]})
                messages.append({"role": "user", "content": "Why?"})
