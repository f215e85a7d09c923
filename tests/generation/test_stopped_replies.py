"""A reply that is cancelled in the middle of a pass: evaluated tokens count, and nothing else is in the cache."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from qwchat.events import EngineEvent, Finished, Prefilled, TokenStep
from qwchat.request import SamplingParams
from tests.cpu.random_models import config, random_folder
from tests.generation.conversations import Conversation, generate, open_conversation

IDS = np.random.default_rng(8).integers(0, 301, 700).tolist()
CHUNK = 128
SETTINGS = SamplingParams(temperature=0.7)


@pytest.fixture(params=["f32", "q8"])
def conversation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Conversation]:
    """Yield a conversation in which every pass can be cancelled, as with a large model."""
    monkeypatch.setattr("qwchat.cpu.decoder._CANCELLABLE_SECONDS", 0.0)
    with open_conversation(random_folder(config()), threads=2, context=1024, kv=request.param) as built:
        yield built


def events(
    conversation: Conversation, generated: list[int], cancel: Callable[[], bool] | None = None
) -> Iterator[EngineEvent]:
    """Yield the events of the reply to IDS, or of its rest after `generated`."""
    return generate(
        conversation,
        [*IDS, *generated],
        SETTINGS,
        seed=1,
        usable_vocab=301,
        max_tokens=20 - len(generated),
        cancel=cancel,
        speculate=True,
        continued=len(generated),
    )


def tokens(found: Iterator[EngineEvent]) -> list[int]:
    return [event.token_id for event in found if isinstance(event, TokenStep)]


class Stop:
    """Cancels at the second call after `passes` passes: the first call comes before a pass, the second within it.

    `seconds` is the time into that pass.
    """

    def __init__(self, passes: int, seconds: float = 0.0) -> None:
        self._passes, self._asked, self._seconds = passes, 0, seconds

    def note(self, event: EngineEvent) -> EngineEvent:
        self._passes -= isinstance(event, Prefilled)
        return event

    def __call__(self) -> bool:
        self._asked += self._passes == 0
        if self._asked == 2:
            time.sleep(self._seconds)
        return self._asked >= 2


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_evaluated_tokens_are_counted_and_cached(conversation: Conversation, passes: int) -> None:
    expected = tokens(events(conversation, []))
    conversation.cached.truncate(0)
    stop = Stop(passes)
    *before, end = (stop.note(event) for event in events(conversation, [], stop))
    assert isinstance(end, Finished)
    assert [event.done for event in before if isinstance(event, Prefilled)] == [
        CHUNK * number for number in range(1, passes + 1)
    ]
    stats = end.stats
    assert (end.reason, stats.prompt_tokens, stats.evaluated_tokens) == ("cancelled", 700, CHUNK * passes)
    assert (stats.time_to_first_token, stats.generated_tokens, stats.decode_seconds) == (None, 0, 0.0)
    assert stats.prefill_rate == (CHUNK * passes / stats.prefill_seconds if passes else 0.0)
    assert conversation.cached.length == stats.context_used == CHUNK * passes
    *_, end = again = list(events(conversation, []))
    assert isinstance(end, Finished)
    assert (end.stats.cached_tokens, end.stats.unread_tokens) == (CHUNK * passes, 0)
    assert tokens(iter(again)) == expected


def test_the_text_is_the_same_wherever_passes_were_cancelled(conversation: Conversation) -> None:
    expected = tokens(events(conversation, []))
    rng = np.random.default_rng(0)
    stops = 0
    while stops < 30:
        conversation.cached.truncate(int(rng.integers(0, 700)))
        generated: list[int] = []
        while len(generated) < len(expected):
            end = time.perf_counter() + float(rng.uniform(0, 0.01))
            found = list(events(conversation, generated, lambda end=end: time.perf_counter() > end))  # type: ignore[misc]
            generated += tokens(iter(found))
            stops += isinstance(found[-1], Finished) and found[-1].reason == "cancelled"
        assert generated == expected


def test_another_prompt_after_a_cancellation_finds_a_consistent_cache(conversation: Conversation) -> None:
    other = [*IDS[:300], *IDS[10:200]]
    expected = conversation.cached.logits(other)
    conversation.cached.truncate(0)
    for seconds in (0.0, 2e-4, 5e-4, 1e-3, 2e-3):
        list(events(conversation, [], Stop(0, seconds)))
        conversation.cached.truncate(300)
        start = conversation.cached.length
        assert np.array_equal(conversation.cached.extend(other[start:]), expected[start:])


def make_endless(conversation: Conversation) -> None:
    """Let a pass wait until it is cancelled, so that the test does not depend on the machine's speed."""
    team = conversation.engine.decoder._team
    lead = team._entry_points.lead

    def slow(*arguments: int) -> None:
        begun = time.monotonic()
        while not team._cancel_word[0] and time.monotonic() - begun < 20:
            time.sleep(0.001)
        lead(*arguments)

    team._entry_points = team._entry_points._replace(lead=slow)


@pytest.mark.parametrize(
    "work",
    [lambda conversation: list(events(conversation, [])), lambda conversation: conversation.cached.extend(IDS[CHUNK:])],
)
def test_ctrl_c_ends_a_long_pass(conversation: Conversation, work: Callable[[Conversation], object]) -> None:
    expected = tokens(events(conversation, []))
    conversation.cached.truncate(CHUNK)
    entry_points = conversation.engine.decoder._team._entry_points
    make_endless(conversation)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work(conversation)
    finally:
        signal.signal(signal.SIGINT, before)
        timer.join()
    conversation.engine.decoder._team._entry_points = entry_points
    assert conversation.cached.length == CHUNK
    assert tokens(events(conversation, [])) == expected


def test_another_thread_can_cancel_a_long_pass(conversation: Conversation) -> None:
    make_endless(conversation)
    asked = threading.Event()
    timer = threading.Timer(0.2, asked.set)
    timer.start()
    (end,) = events(conversation, [], asked.is_set)
    timer.join()
    assert isinstance(end, Finished)
    assert (end.reason, end.stats.evaluated_tokens) == ("cancelled", 0)


def test_a_token_of_a_slow_model_is_cancelled_too(conversation: Conversation) -> None:
    expected = tokens(events(conversation, []))
    found: list[EngineEvent] = []
    entry_points = conversation.engine.decoder._team._entry_points
    asked = threading.Event()
    for event in events(conversation, [], asked.is_set):
        found.append(event)
        if len(tokens(iter(found))) == 3 and not asked.is_set():
            make_endless(conversation)
            threading.Timer(0.2, asked.set).start()
    assert isinstance(found[-1], Finished)
    assert (found[-1].reason, found[-1].stats.generated_tokens) == ("cancelled", 3)
    conversation.engine.decoder._team._entry_points = entry_points
    assert tokens(events(conversation, expected[:3])) == expected[3:]
