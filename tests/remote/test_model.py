"""A model on a scripted server: what it is sent, and what becomes of its answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qwchat.constraints import Constraint
from qwchat.errors import UsageError
from qwchat.messages import Message
from qwchat.request import PromptOptions, SamplingParams
from tests.remote.asking import HELLO, NONE_SET, Asked
from tests.remote.scripted_server import DONE, Action, answer, delta, event, reply, silence, stream


def test_a_reply() -> None:
    with Asked(reply("Hel", "lo", " you")) as asked:
        done = asked.ask().done
        assert asked.text == done.text == "Hello you"
        assert asked.sent == {
            "model": "m",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": 7,
        }
        [seen] = asked.server.seen
        assert (seen.method, seen.path) == ("POST", "/v1/chat/completions")
        assert seen.headers["authorization"] == "Bearer sk-secret"
        assert seen.headers["accept-encoding"] == "identity"
    assert done.finish_reason == "stop"
    assert done.seed == 7
    assert done.token_ids == ()
    stats = done.stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens, stats.context) == (12, 5, 3, 2048)
    assert not stats.estimated
    assert stats.unknown == ("drafted", "accepted", "prefill_seconds", "prefill_tokens_per_second")


def test_what_is_set_is_sent() -> None:
    with Asked(reply("a")) as asked:
        asked.ask(
            settings=SamplingParams(temperature=0.5, top_k=3, repeat_penalty=1.1),
            unset=frozenset({"top_p", "min_p", "presence_penalty", "frequency_penalty"}),
            max_tokens=9,
            stop=("END",),
            logprobs=2,
            options=PromptOptions(thinking=False, template_variables={"tone": "dry"}),
        )
        sent = {name: value for name, value in asked.sent.items() if name not in ("messages", "stream_options")}
    assert sent == {
        "model": "m",
        "stream": True,
        "seed": 7,
        "temperature": 0.5,
        "top_k": 3,
        "repetition_penalty": 1.1,
        "max_tokens": 9,
        "stop": ["END"],
        "logprobs": True,
        "top_logprobs": 2,
        "chat_template_kwargs": {"tone": "dry", "enable_thinking": False},
    }


@pytest.mark.parametrize(
    ("constraint", "sent", "texts", "meets"),
    [
        (Constraint.choices(["yes", "a,b"]), {"structured_outputs": {"choice": ["yes", "a,b"]}}, "a,b", True),
        (Constraint.regex("[0-9]+"), {"structured_outputs": {"regex": "[0-9]+"}}, "12x", False),
        (
            Constraint.json_schema('{"type": "integer"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "reply", "schema": {"type": "integer"}, "strict": True},
                }
            },
            "12",
            True,
        ),
    ],
)
def test_constraints_are_sent_and_checked(
    constraint: Constraint, sent: dict[str, Any], texts: str, meets: bool
) -> None:
    with Asked(reply(*texts)) as asked:
        assert asked.ask(constraint=constraint).done.meets_constraint is meets
        assert sent.items() <= asked.sent.items()


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_pieces_within_characters_and_lines(size: int) -> None:
    raw = json_text = '{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}'
    data = (
        event(json_text.encode())
        + event(raw.replace("\\ud83d", "\\ude00 日").encode())
        + delta("é\ud800x", "stop")
        + DONE
    )
    data = data.replace(b"\n", b"\r\n")
    with Asked(stream(*(data[start : start + size] for start in range(0, len(data), size)))) as asked:
        assert asked.ask().done.text == "\U0001f600 日é\ufffdx"
        assert asked.text == asked.done.text


THINKING: list[tuple[Action, ...]] = [
    (
        stream(
            delta(reasoning_content="I "), delta(reasoning_content="see"), delta("\n\nYes"), delta(".", "stop"), DONE
        ),
    ),
    (stream(delta(reasoning="I "), delta(reasoning="see"), delta("Yes."), delta(reason="stop"), DONE),),
    (reply("<th", "ink>\nI ", "see\n</think>", "\n\nYes", "."),),
    (
        answer(
            200, {"choices": [{"message": {"content": "Yes.", "reasoning_content": "I see"}, "finish_reason": "stop"}]}
        ),
    ),
]


@pytest.mark.parametrize("replies", THINKING)
def test_thoughts(replies: tuple[Action, ...]) -> None:
    with Asked(*replies) as asked:
        done = asked.ask().done
    assert (asked.thought, asked.text) == ("I see", "Yes.")
    assert (done.reasoning, done.text) == ("I see", "Yes.")
    assert done.raw_text is not None
    assert done.raw_text.split() == ["<think>", "I", "see", "</think>", "Yes."]
    assert done.stats.reasoning_tokens > 0


def test_thoughts_of_earlier_replies() -> None:
    spoken: list[Message] = [
        {"role": "user", "content": "<think>mine</think>"},
        {"role": "assistant", "content": "<think>\nI see\n</think>\n\nYes."},
        {"role": "user", "content": "Sure?"},
    ]
    with Asked(reply("a")) as asked:
        asked.ask(spoken)
        assert asked.sent["messages"] == [
            {"role": "user", "content": "<think>mine</think>"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Sure?"},
        ]
        asked.ask(spoken, options=PromptOptions(keep_thoughts=True))
        assert asked.sent["messages"][1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "I see"}


def test_a_stop_string_that_the_server_ignores() -> None:
    with Asked(silence(delta("one EN"), delta("D two"))) as asked:
        assert asked.ask(stop=("END",)).done.text == asked.text == "one "
        assert asked.done.finish_reason == "stop"
        asked.server.wait_until_closed()


@pytest.mark.parametrize(("limit", "reason"), [(3, "length"), (None, "context"), (4, "context")])
def test_lengths(limit: int | None, reason: str) -> None:
    end = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
    with Asked(stream(delta("abc"), delta(reason="length"), end, DONE)) as asked:
        assert asked.ask(max_tokens=limit).done.finish_reason == reason


def test_logprobs() -> None:
    top = [{"token": "a", "logprob": -0.5, "top_logprobs": [{}]}, {"token": 3}, {"token": "b", "logprob": -1}]
    content = [{"token": "a", "logprob": -0.5, "top_logprobs": top}]
    first = event({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": content}}]})
    with Asked(stream(first, delta("b", "stop"), DONE)) as asked:
        [logprob] = asked.ask(logprobs=2).done.logprobs
    assert (logprob.token_id, logprob.text, logprob.logprob) == (None, "a", -0.5)
    assert [(each.text, each.logprob) for each in logprob.top] == [("a", -0.5), ("b", -1.0)]


HOSTILE_USAGE = b'{"choices":[],"usage":{"prompt_tokens":-4,"completion_tokens":1e400,"prompt_tokens_details":7},'
HOSTILE_USAGE += b'"timings":{"prompt_ms":NaN,"predicted_ms":-1e9,"cache_n":true}}'


def test_hostile_figures_count_as_missing() -> None:
    with Asked(stream(delta("a"), delta("b", "stop"), event(HOSTILE_USAGE), DONE)) as asked:
        stats = asked.ask().done.stats
    assert stats.estimated
    assert (stats.generated_tokens, stats.cached_tokens, stats.prefill_seconds) == (2, 0, 0.0)
    assert 0 < stats.prompt_tokens < 20
    assert math.isfinite(stats.decode_seconds)
    assert stats.decode_seconds >= 0
    assert {"cached", "read", "prefill_seconds"} <= set(stats.unknown)


def test_timings_of_the_server() -> None:
    usage = {"usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    timings = {"timings": {"prompt_ms": 500, "predicted_ms": 250.0, "cache_n": 4}}
    with Asked(stream(delta("a"), delta("b", "stop"), event({"choices": [], **usage, **timings}), DONE)) as asked:
        stats = asked.ask().done.stats
    assert (stats.prefill_seconds, stats.decode_seconds, stats.cached_tokens) == (0.5, 0.25, 4)
    assert (stats.prefill_rate, stats.decode_rate) == (10.0, 4.0)


def test_fields_that_a_strict_server_rejects_are_left_out() -> None:
    unknown = {"error": {"message": "Unrecognized request argument supplied: top_k", "type": "invalid_request_error"}}
    renamed = {
        "error": {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "param": "max_tokens",
        }
    }
    extra = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
    with Asked(answer(400, unknown), answer(400, renamed), answer(422, extra), reply("Hi")) as asked:
        settings = {"settings": SamplingParams(top_k=5), "unset": NONE_SET - {"top_k"}, "max_tokens": 4}
        assert asked.ask(**settings).done.text == "Hi"
        name = asked.server.name
        assert asked.notices == [
            f"{name} does not accept top_k, which is left out from now on",
            f"{name} does not accept seed, which is left out from now on",
        ]
        assert asked.ask(**settings).done.text == "Hi"
        assert len(asked.server.chats) == 5
        assert {"top_k", "max_tokens", "seed"}.isdisjoint(asked.sent)
        assert asked.sent["max_completion_tokens"] == 4


def test_a_schema_in_the_older_form() -> None:
    """Follow a server that knows `json_object` alone, and leave the schema out if it does not know that either."""
    text = "1 validation error: {'type': 'literal_error', 'loc': ('body', 'response_format', 'type')}"
    refused = answer(500, {"error": {"message": text, "type": "internal_server_error"}})
    constraint = Constraint.json_schema('{"type": "integer"}')
    with Asked(refused, reply("12")) as asked:
        assert asked.ask(constraint=constraint).done.meets_constraint
        assert asked.sent["response_format"] == {"type": "json_object", "schema": {"type": "integer"}}
        assert asked.notices == []
    with Asked(refused, refused, reply("twelve")) as asked:
        assert asked.ask(constraint=constraint).done.meets_constraint is False
        assert "response_format" not in asked.sent
        assert len(asked.notices) == 1


def test_continuing_a_reply() -> None:
    spoken: list[Message] = [*HELLO, {"role": "assistant", "content": "One two"}]
    with Asked(reply(" three"), software="vllm") as asked:
        done = asked.ask(spoken, continuing=True).done
        assert asked.sent["messages"][-1] == {"role": "assistant", "content": "One two"}
        assert asked.sent["continue_final_message"] is True
        assert asked.sent["add_generation_prompt"] is False
    assert (asked.text, done.text) == (" three", "One two three")
    with Asked(reply("a")) as asked, pytest.raises(UsageError, match="cannot continue a reply"):
        asked.ask(spoken, continuing=True)


def test_a_thought_cannot_be_limited() -> None:
    with Asked(reply("a")) as asked:
        asked.ask(think_budget=5)
        assert asked.message == "a thought on HOST cannot be limited: give think_budget=0"


def test_counts_come_from_the_server() -> None:
    with Asked(reply("Hi"), answer(404)) as asked:
        before = asked.model.prompt(HELLO)
        assert before.estimated
        asked.ask()
        after = asked.model.prompt(HELLO)
        assert (after.tokens, after.estimated) == (12, False)
        longer = asked.model.prompt([*HELLO, {"role": "assistant", "content": "Hi"}])
        assert longer.estimated
        assert longer.tokens > 12


def test_a_full_context_is_counted_by_the_server() -> None:
    text = "word " * 1500
    with Asked(reply("Hi")) as asked:
        asked.server.others["/tokenize"] = answer(200, {"count": 1501, "tokens": []})
        assert 1501 < asked.model.prompt([{"role": "user", "content": text}]).tokens < 1520
        assert asked.server.seen[-1].body["content"] == asked.server.seen[-1].body["prompt"] == text
        assert len(asked.model.encode(text)) == 1501
    with Asked(reply("Hi")) as asked:
        estimate = len(asked.model.encode(text))
        assert 1000 < estimate < 3000
        assert len(asked.model.encode(text)) == estimate
        assert len(asked.server.seen) == 1  # It is not asked again.
