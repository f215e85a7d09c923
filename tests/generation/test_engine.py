"""The engine: which tokens a reply evaluates, given the cached ones, and how it ends."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.errors import PromptTooLongError, UsageError
from qwchat.events import Finished, Prefilled, TokenStep
from qwchat.request import SamplingParams
from tests.cpu.random_models import config, random_folder
from tests.generation.conversations import generate, open_conversation

IDS = np.random.default_rng(3).integers(0, 301, 700).tolist()
GREEDY = SamplingParams()


def test_generate_reuses_the_cache_and_gives_the_same_tokens() -> None:
    with open_conversation(random_folder(config()), threads=2, context=256) as built:
        run = {"seed": 1, "usable_vocab": 301, "max_tokens": 20}
        events = list(generate(built, IDS[:140], GREEDY, **run))
        tokens = [event.token_id for event in events if isinstance(event, TokenStep)]
        assert [(e.done, e.cached) for e in events if isinstance(e, Prefilled)] == [(128, 0), (140, 0)]
        assert len(tokens) == 20
        again = list(generate(built, [*IDS[:140], *tokens[:5]], GREEDY, **run))
        assert [e.token_id for e in again if isinstance(e, TokenStep)][:15] == tokens[5:]
        end = again[-1]
        assert isinstance(end, Finished)
        assert (end.reason, end.stats.cached_tokens, end.stats.prompt_tokens) == ("length", 144, 145)
        assert end.stats.generated_tokens == 20


def test_how_generation_ends() -> None:
    with open_conversation(random_folder(config()), threads=1, context=64) as built:

        def reason(ids: list[int], **options: object) -> str:
            settings = {"seed": 0, "usable_vocab": 301} | options
            end = list(generate(built, ids, GREEDY, **settings))[-1]  # type: ignore[arg-type]
            assert isinstance(end, Finished)
            return end.reason

        first = next(e for e in generate(built, IDS[:9], GREEDY, seed=0, usable_vocab=301) if isinstance(e, TokenStep))
        assert reason(IDS[:9], stop_ids=frozenset([first.token_id])) == "stop"
        assert reason(IDS[:9], max_tokens=3) == "length"
        assert reason(IDS[:9], max_tokens=0) == "length"
        assert reason(IDS[:9]) == "context"
        assert reason(IDS[:64]) == "context"
        assert reason(IDS[:9], cancel=lambda: True) == "cancelled"
        with pytest.raises(PromptTooLongError):
            reason(IDS[:65])
        with pytest.raises(UsageError):
            reason([])


def test_padding_rows_are_never_chosen() -> None:
    with open_conversation(random_folder(config()), threads=1, context=64) as built:
        steps = generate(built, IDS[:5], SamplingParams(temperature=5.0), seed=3, usable_vocab=17)
        assert all(event.token_id < 17 for event in steps if isinstance(event, TokenStep))
