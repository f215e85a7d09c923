"""The token budget of thoughts, on a model that follows a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qwchat
from qwchat.constraints import Constraint
from qwchat.errors import UsageError
from qwchat.events import Done, TextStep
from qwchat.messages import Message
from qwchat.request import PromptOptions, SamplingParams
from tests.thinking import (
    CLOSING_ID,
    OPENED,
    OPENING_ID,
    SWITCHED,
    encode_reply,
    follow,
    load_scripted,
    make_thinking_checkpoint,
    make_thinking_model,
)

ASK: list[Message] = [{"role": "user", "content": "hello"}]
GREEDY = SamplingParams()
THOUGHT, ANSWER = "one two\nhello 漢 the hell", "Yes, hello"
REPLY = f"{THOUGHT}\n</think>\n\n{ANSWER}"
TEMPLATES = {"open": OPENED, "optional": SWITCHED}
OPENING = {"open": "", "optional": "<think>\n"}


@pytest.fixture(scope="module", params=["open", "optional"])
def start(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(start: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    folder = make_thinking_model(tmp_path_factory.mktemp(start), TEMPLATES[start])
    with load_scripted(folder, OPENING[start] + REPLY) as loaded:
        yield loaded


def reply_to(model: qwchat.Model, messages: list[Message] = ASK, **options: Any) -> Done:
    """Return the end of a reply, whose steps, ids and cached tokens must agree with it."""
    events = list(model.chat(messages, settings=GREEDY, seed=1, **options))
    done = events[-1]
    assert isinstance(done, Done)
    steps = [event for event in events if isinstance(event, TextStep)]
    earlier = len(messages[-1].get("token_ids", ())) if options.get("continuing") else 0
    assert tuple(step.token_id for step in steps if step.token_id is not None) == done.token_ids[earlier:]
    text = model.decode(done.token_ids)
    assert text.startswith(done.content) if options.get("stop") else text == done.content
    prompt = model.prompt(messages, continuing=bool(options.get("continuing"))).ids
    whole = [*prompt, *done.token_ids[earlier:]]
    assert list(model.cached_ids) == whole[: len(model.cached_ids)]
    assert len(whole) - len(model.cached_ids) in (0, 1)
    return done


def cut_reply(model: qwchat.Model, start: str, budget: int, *, after: str = "\n\n" + ANSWER) -> list[int]:
    """Return the ids of the reply whose thought is closed after `budget` tokens."""
    opening = [OPENING_ID] if start == "optional" else []
    thought = encode_reply(model.tokenizer, OPENING[start] + THOUGHT)[len(opening) :][:budget]
    newline = model.encode("\n")
    return [
        *opening,
        *thought,
        *([] if thought[-1:] == newline else newline),
        CLOSING_ID,
        *model.encode(after),
    ]


@pytest.mark.parametrize("speculate", [False, True])
def test_the_thought_is_closed_after_the_budget(model: qwchat.Model, start: str, speculate: bool) -> None:
    whole = reply_to(model)
    assert (whole.reasoning, whole.text, whole.reasoning_truncated) == (THOUGHT, ANSWER, False)
    length = len(encode_reply(model.tokenizer, OPENING[start] + THOUGHT + "\n")) - (start == "optional")
    for budget in range(1, length + 3):
        done = reply_to(model, think_budget=budget, speculate=speculate)
        assert done.finish_reason == "stop"
        assert done.text == ANSWER
        if budget > length:
            assert done.token_ids == whole.token_ids
            assert not done.reasoning_truncated
        else:
            assert list(done.token_ids) == cut_reply(model, start, budget)
            assert done.reasoning_truncated
            assert done.stats.reasoning_tokens == done.token_ids.index(CLOSING_ID) + 1


@pytest.mark.parametrize("speculate", [False, True])
def test_a_reply_cut_anywhere_continues_with_its_budget(model: qwchat.Model, start: str, speculate: bool) -> None:
    whole = reply_to(model, think_budget=9)
    for cut in range(1, len(whole.token_ids)):
        part = reply_to(model, think_budget=9, max_tokens=cut, speculate=speculate)
        assert part.finish_reason == "length"
        begun: list[Message] = [*ASK, {"role": "assistant", "content": part.content, "token_ids": part.token_ids}]
        done = reply_to(model, begun, continuing=True, think_budget=9, speculate=speculate)
        assert done.token_ids == whole.token_ids
        assert (done.reasoning, done.text, done.reasoning_truncated) == (whole.reasoning, whole.text, True)


def test_a_smaller_budget_closes_the_continued_thought_at_once(model: qwchat.Model, start: str) -> None:
    part = reply_to(model, max_tokens=10)
    begun: list[Message] = [*ASK, {"role": "assistant", "content": part.content, "token_ids": part.token_ids}]
    done = reply_to(model, begun, continuing=True, think_budget=2)
    tokens = 10 - (start == "optional")
    assert list(done.token_ids) == cut_reply(model, start, tokens)
    assert done.reasoning_truncated


def test_a_sampled_reply_keeps_the_draws_of_its_seed(tmp_path: Path) -> None:
    hot = SamplingParams(temperature=1.5)
    with qwchat.load(make_thinking_model(tmp_path, OPENED), threads=1) as model:
        options: dict[str, Any] = {"settings": hot, "seed": 3, "think_budget": 6}
        whole, plain = (
            list(model.chat(ASK, max_tokens=40, speculate=speculate, **options))[-1] for speculate in (True, False)
        )
        assert isinstance(whole, Done)
        assert isinstance(plain, Done)
        assert whole.token_ids == plain.token_ids
        assert whole.token_ids[6:10] == (*model.encode("\n"), CLOSING_ID, *model.encode("\n\n"))
        cut: list[Message] = [
            *ASK,
            {"role": "assistant", "content": model.decode(whole.token_ids[:7]), "token_ids": whole.token_ids[:7]},
        ]
        rest = list(model.chat(cut, continuing=True, max_tokens=33, **options))[-1]
        assert isinstance(rest, Done)
        assert rest.token_ids == whole.token_ids


@pytest.mark.parametrize("speculate", [False, True])
def test_a_constraint_begins_after_the_closed_thought(model: qwchat.Model, start: str, speculate: bool) -> None:
    constraint = Constraint.regex("Yes, .*")
    done = reply_to(model, think_budget=4, constraint=constraint, speculate=speculate)
    assert list(done.token_ids) == cut_reply(model, start, 4, after=ANSWER)
    assert (done.text, done.meets_constraint, done.reasoning_truncated) == (ANSWER, True, True)


def test_stop_strings_end_the_answer_after_the_closed_thought(model: qwchat.Model) -> None:
    done = reply_to(model, think_budget=4, stop=["hello", "one"])
    assert (done.text, done.finish_reason, done.reasoning_truncated) == ("Yes, ", "stop", True)


def test_replies_without_a_thought_have_no_budget(model: qwchat.Model, start: str) -> None:
    if start == "optional":
        done = list(model.chat(ASK, settings=GREEDY, options=PromptOptions(thinking=False), think_budget=1))[-1]
        assert isinstance(done, Done)
        assert (done.text, done.raw_text, done.reasoning_truncated) == (ANSWER, None, False)
    events = list(model.generate("hello", settings=GREEDY, max_tokens=5))
    assert isinstance(events[-1], Done)
    with pytest.raises(UsageError, match="think_budget must be at least 0"):
        model.chat(ASK, think_budget=-1)


def test_a_thought_is_closed_whose_tags_are_not_tokens(tmp_path: Path) -> None:
    from quant import convert

    checkpoint = make_thinking_checkpoint(tmp_path / "tiny", OPENED, tokens=False)
    list(convert(checkpoint, tmp_path / "tiny-q4"))
    with qwchat.load(tmp_path / "tiny-q4", threads=1) as model:
        done = list(model.chat(ASK, settings=GREEDY, think_budget=3, max_tokens=60))[-1]
        assert isinstance(done, Done)
        closing = model.encode("\n</think>\n\n")
        assert list(done.token_ids[3 : 3 + len(closing)]) == closing
        assert done.reasoning_truncated
        assert done.raw_text is not None
        assert done.raw_text.startswith(model.decode(done.token_ids[:3]) + "\n</think>\n\n")


def test_a_script_is_followed(model: qwchat.Model, start: str) -> None:
    follow(model, "<think>\nnever closed")
    try:
        done = reply_to(model)
        assert (done.reasoning, done.text, done.finish_reason) == ("never closed", "", "stop")
    finally:
        follow(model, OPENING[start] + REPLY)
