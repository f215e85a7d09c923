"""Thoughts of reasoning models: `reasoning_content` in replies, streams and earlier messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import qwchat
from qwchat.messages import Message
from tests.server.serving import Serving, serving
from tests.thinking import OPENED, SWITCHED, load_scripted, make_thinking_model

ASK: list[Message] = [{"role": "user", "content": "hello"}]
THOUGHT, ANSWER = "one two\nhello 漢 the hell", "Yes, hello"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": ASK, "temperature": 0}


@pytest.fixture(scope="module", params=["open", "optional"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    template, opening = {"open": (OPENED, ""), "optional": (SWITCHED, "<think>\n")}[request.param]
    folder = make_thinking_model(tmp_path_factory.mktemp(request.param), template)
    with load_scripted(folder, f"{opening}{THOUGHT}\n</think>\n\n{ANSWER}") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def thinking(model: qwchat.Model) -> Iterator[Serving]:
    with serving(model) as running:
        yield running


def test_a_whole_reply_has_its_thought(thinking: Serving) -> None:
    found = thinking.post(CHAT, **BODY)
    message = found["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_stream_has_both_parts(thinking: Serving) -> None:
    deltas = [piece["choices"][0]["delta"] for piece in thinking.stream(CHAT, **BODY)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHT
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER


def test_log_probabilities_are_those_of_the_answer(thinking: Serving) -> None:
    entries = thinking.post(CHAT, **BODY, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).strip() == ANSWER


def test_stop_strings_and_constraints_are_those_of_the_answer(thinking: Serving) -> None:
    message = thinking.post(CHAT, **BODY, stop=["hello"])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, "Yes, ")
    message = thinking.post(CHAT, **BODY, guided_choice=["No", "Yes"])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, "Yes")


def test_earlier_thoughts_reach_the_template(thinking: Serving, model: qwchat.Model) -> None:
    """Compare the prompt with that of the same text as one message; these templates cut the thought."""
    following = [{"role": "user", "content": "the other"}]
    parts = [*ASK, {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}, *following]
    whole: list[Any] = [*ASK, {"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"}, *following]
    assert thinking.post("/tokenize", messages=parts)["tokens"] == list(model.prompt(whole).ids)


@pytest.mark.parametrize("tokens", [1, 4, 1000])
def test_an_unfinished_thought_continues(thinking: Serving, model: qwchat.Model, tokens: int) -> None:
    begun = model.decode(model.encode(THOUGHT)[:tokens])
    messages = [*ASK, {"role": "assistant", "content": "", "reasoning_content": begun}]
    found = thinking.post(CHAT, messages=messages, temperature=0, continue_final_message=True)
    message = found["choices"][0]["message"]
    assert (begun + message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)


def test_an_unfinished_answer_continues_after_its_thought(thinking: Serving) -> None:
    begun = {"role": "assistant", "content": "Yes,", "reasoning_content": THOUGHT}
    found = thinking.post(CHAT, messages=[*ASK, begun], temperature=0, continue_final_message=True)
    assert "Yes," + found["choices"][0]["message"]["content"] == ANSWER


def test_the_template_can_leave_the_thought_out(thinking: Serving, model: qwchat.Model) -> None:
    options = [qwchat.request.PromptOptions(thinking=thinks) for thinks in (True, False)]
    for thinks, wanted in zip((True, False), options, strict=True):
        found = thinking.post("/tokenize", messages=ASK, chat_template_kwargs={"enable_thinking": thinks})
        assert found["tokens"] == list(model.prompt(ASK, options=wanted).ids)
