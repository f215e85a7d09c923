"""Answers of any bytes: a reply, or one line."""

from __future__ import annotations

import contextlib
import json
import random

from qwchat.errors import EndpointError
from qwchat.events import Done
from tests.remote.asking import Asked
from tests.remote.scripted_server import DONE, USAGE, Action, answer, event, models, stream
from tests.tiers import count

VALUES = [
    None,
    True,
    -1,
    1e999,
    float("nan"),
    2**70,
    "",
    "x\ud800",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": []},
    "stop",
    "length",
]
KEYS = [
    "choices",
    "delta",
    "content",
    "reasoning_content",
    "finish_reason",
    "usage",
    "logprobs",
    "index",
    "error",
    "id",
]


def mutated(value: object, chance: random.Random) -> object:
    """Return a JSON value with some parts replaced."""
    if chance.random() < 0.15:
        return chance.choice(VALUES)
    if isinstance(value, dict):
        changed = {key: mutated(inner, chance) for key, inner in value.items() if chance.random() > 0.05}
        return changed | ({chance.choice(KEYS): chance.choice(VALUES)} if chance.random() < 0.1 else {})
    return [mutated(inner, chance) for inner in value] if isinstance(value, list) else value


def hostile_stream(chance: random.Random) -> Action:
    """Return an answer whose events, bytes and pieces are damaged."""
    top = {"content": [{"token": "a", "logprob": -1, "top_logprobs": [{"token": "b", "logprob": -2}]}]}
    sound = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "logprobs": top}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm"}}], "timings": {"prompt_ms": 1.5, "cache_n": 2}},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE},
    ]
    data = bytearray(b"".join(event(mutated(value, chance)) for value in sound) + DONE)
    for _ in range(chance.choice([0, 0, 1, 5])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    cuts = sorted(chance.randrange(len(data)) for _ in range(3))
    pieces = [bytes(data[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    kind = chance.choice(["text/event-stream", "text/event-stream", "application/json", "\u00e9", "text/plain"])
    return stream(*pieces, content_type=kind, cut=chance.random() < 0.1)


def test_damaged_streams() -> None:
    chance = random.Random(7)
    cases, errors = count(2000, 60), 0
    with Asked(*(hostile_stream(chance) for _ in range(cases))) as asked:
        for _ in range(cases):
            asked.ask(logprobs=2)
            if asked.error is None:
                assert isinstance(asked.done, Done)
                asked.done.text.encode()
                json.dumps([each.logprob for each in asked.done.logprobs], allow_nan=False)
            else:
                assert asked.message.isprintable()
                errors += 1
    assert 0 < errors < cases


def test_damaged_lists_of_models() -> None:
    chance = random.Random(8)
    sound = {"data": [{"id": "a", "max_model_len": 512, "meta": {"n_ctx": 5}, "owned_by": "vllm"}, {"id": "b"}]}
    with Asked() as asked:
        for _ in range(count(500, 30)):
            asked.server.others["/v1/models"] = answer(200, mutated(sound, chance))
            with contextlib.suppress(EndpointError):
                found = asked.model._client.models()
                assert found is not None
                assert all(model.name.isprintable() and (model.context or 2) >= 2 for model in found)
        asked.server.others["/v1/models"] = models("fine")
        assert asked.model._client.models()
