"""The endpoints with the built-in model: forms of replies, and that they are those of the API."""

from __future__ import annotations

import json
from typing import Any

import pytest

import qwchat
from qwchat.events import Done
from qwchat.messages import Message
from qwchat.request import SamplingParams
from tests.server.serving import Serving, serving

ASK: list[Message] = [{"role": "user", "content": "What can you do?"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODY: dict[str, Any] = {"messages": ASK, "temperature": 0}


def reply(model: qwchat.Model, **options: Any) -> Done:
    """Return a reply of the API, from a KV cache of its own."""
    context = model.make_context()
    prompt = model.prompt(options.pop("messages", ASK), continuing=options.pop("continuing", False))
    request = model._request(options.pop("settings", SamplingParams()), options.pop("seed", 1), **options)
    events = list(model.stream(prompt, request, cached_context=context))
    assert isinstance(events[-1], Done)
    return events[-1]


def test_a_reply_is_that_of_the_api(served: Serving, mini: qwchat.Model) -> None:
    found, wanted = served.chat(model="mini", seed=5), reply(mini)
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert (choice["finish_reason"], choice["index"], choice["logprobs"]) == ("stop", 0, None)
    assert (found["object"], found["model"], found["seed"]) == ("chat.completion", "mini", 5)
    assert found["id"].startswith("chatcmpl-")
    stats = wanted.stats
    assert found["usage"]["prompt_tokens"] == stats.prompt_tokens
    assert found["usage"]["completion_tokens"] == stats.generated_tokens
    assert found["usage"]["total_tokens"] == stats.prompt_tokens + stats.generated_tokens
    assert found["timings"]["cache_n"] + found["timings"]["prompt_n"] == stats.prompt_tokens
    assert found["timings"]["queue_ms"] >= 0


def test_a_stream_has_the_same_text(served: Serving, mini: qwchat.Model) -> None:
    pieces = served.stream(CHAT, **BODY, stream_options={"include_usage": True})
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in pieces[:-1]) == reply(mini).text
    assert [each["choices"][0]["finish_reason"] for each in pieces[:-1]] == [None] * (len(pieces) - 2) + ["stop"]
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["completion_tokens"] == reply(mini).stats.generated_tokens
    assert pieces[-2]["timings"]["predicted_n"] == reply(mini).stats.generated_tokens
    assert {each["id"] for each in pieces} == {pieces[0]["id"]}
    assert {each["object"] for each in pieces} == {"chat.completion.chunk"}
    assert "usage" not in served.stream(CHAT, **BODY)[-1]


def test_sampling_parameters_arrive(served: Serving, mini: qwchat.Model) -> None:
    given = {"temperature": 4.0, "top_k": 40, "top_p": 0.99, "min_p": 0.001}
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.2}
    settings = SamplingParams(**given, **penalties, repeat_penalty=1.1)
    found = served.chat(**given, **penalties, repetition_penalty=1.1, seed=11, max_tokens=40)
    wanted = reply(mini, settings=settings, seed=11, max_tokens=40)
    assert found["choices"][0]["message"]["content"] == wanted.text
    assert wanted.text != reply(mini, max_tokens=40).text


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_is_limited(served: Serving, name: str) -> None:
    found = served.chat(**{name: 3})
    assert found["usage"]["completion_tokens"] == 3
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stop", ["qwchat", ["zzz", "qwchat"]])
def test_stop_strings_end_the_reply(served: Serving, mini: qwchat.Model, stop: Any) -> None:
    found = served.chat(stop=stop)["choices"][0]
    assert found["message"]["content"] == reply(mini).text.partition("qwchat")[0]
    assert found["finish_reason"] == "stop"


def test_log_probabilities(served: Serving, mini: qwchat.Model) -> None:
    wanted = reply(mini, max_tokens=4, logprobs=3)
    entries = served.chat(max_tokens=4, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in entries] == [each.text for each in wanted.logprobs]
    assert [each["logprob"] for each in entries] == [each.logprob for each in wanted.logprobs]
    assert [bytes(each["bytes"]).decode() for each in entries] == [each.text for each in wanted.logprobs]
    assert [[top["token"] for top in each["top_logprobs"]] for each in entries] == [
        [top.text for top in each.top] for each in wanted.logprobs
    ]
    plain = served.chat(max_tokens=4, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [each["top_logprobs"] for each in plain] == [[]] * 4
    streamed = served.stream(CHAT, **BODY, max_tokens=4, logprobs=True, top_logprobs=3)
    parts = [each["choices"][0]["logprobs"] for each in streamed]
    assert [entry for part in parts if part for entry in part["content"]] == entries


def test_constraints(served: Serving) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for form in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}},
        {"structured_outputs": {"json": schema}},
        {"guided_json": schema},
        {"guided_json": json.dumps(schema)},
    ):
        found = json.loads(served.chat("How many days has a week?", **form)["choices"][0]["message"]["content"])
        assert list(found) == ["n"]
        assert isinstance(found["n"], int)
    for form in ({"structured_outputs": {"choice": ["blau", "rot"]}}, {"guided_choice": ["blau", "rot"]}):
        assert served.chat(**form)["choices"][0]["message"]["content"] in ("blau", "rot")
    for form in ({"structured_outputs": {"regex": "[0-9]{3}"}}, {"guided_regex": "[0-9]{3}"}):
        text = served.chat(**form)["choices"][0]["message"]["content"]
        assert len(text) == 3
        assert text.isdecimal()
    some = served.chat(response_format={"type": "json_object"}, max_tokens=60)["choices"][0]["message"]["content"]
    assert isinstance(json.loads(some), dict)
    assert served.chat(response_format={"type": "text"})["choices"][0]["message"]["content"]


def test_an_unfinished_reply_continues(served: Serving, mini: qwchat.Model) -> None:
    whole = reply(mini).text
    begun = whole[: whole.index("qwchat")]
    messages: list[Message] = [*ASK, {"role": "assistant", "content": begun}]
    for more in ({}, {"add_generation_prompt": False}):
        found = served.post(CHAT, messages=messages, temperature=0, continue_final_message=True, **more)
        assert begun + found["choices"][0]["message"]["content"] == reply(mini, messages=messages, continuing=True).text


def test_text_parts_and_the_developer_role(served: Serving) -> None:
    parts = [{"type": "text", "text": "What can "}, {"type": "text", "text": "you do?"}]
    plain = served.chat()["choices"]
    assert served.post(CHAT, messages=[{"role": "user", "content": parts}], temperature=0)["choices"] == plain
    system, developer = (
        served.post(CHAT, messages=[{"role": role, "content": "Be brief."}, *ASK], temperature=0)["choices"]
        for role in ("system", "developer")
    )
    assert system == developer


def test_completions(served: Serving, mini: qwchat.Model) -> None:
    events = list(mini.generate("Qwen2 is", settings=SamplingParams(), max_tokens=8, logprobs=2))
    wanted = events[-1]
    assert isinstance(wanted, Done)
    body = {"prompt": "Qwen2 is", "temperature": 0, "max_tokens": 8}
    found = served.post(COMPLETIONS, **body, logprobs=2)
    assert found["object"] == "text_completion"
    assert found["choices"][0]["text"] == wanted.text
    logprobs = found["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [each.text for each in wanted.logprobs]
    assert logprobs["token_logprobs"] == [each.logprob for each in wanted.logprobs]
    assert all(len(each) == 2 for each in logprobs["top_logprobs"])
    assert [
        wanted.text[place:][: len(token)]
        for place, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    ] == logprobs["tokens"]
    for prompt in (["Qwen2 is"], mini.encode("Qwen2 is"), [mini.encode("Qwen2 is")]):
        assert served.post(COMPLETIONS, **{**body, "prompt": prompt})["choices"][0]["text"] == wanted.text
    pieces = served.stream(COMPLETIONS, **body, stream_options={"include_usage": True})
    assert "".join(each["choices"][0]["text"] for each in pieces[:-1]) == wanted.text
    assert (pieces[-2]["choices"][0]["finish_reason"], pieces[-1]["choices"]) == (wanted.finish_reason, [])


def test_models_tokens_health_and_metrics(served: Serving, mini: qwchat.Model) -> None:
    listed = served.client.get("/v1/models").json()["data"]
    assert [(each["id"], each["max_model_len"]) for each in listed] == [("mini", 512)]
    assert served.client.get("/v1/models/mini").json() == listed[0]
    assert served.client.get("/v1/models/other").status_code == 404
    ids = mini.encode("Grüße, 世界")
    tokens = {"tokens": ids, "count": len(ids), "max_model_len": 512}
    assert served.post("/tokenize", prompt="Grüße, 世界") == served.post("/tokenize", content="Grüße, 世界") == tokens
    assert served.post("/tokenize", messages=ASK)["tokens"] == list(mini.prompt(ASK).ids)
    assert served.post("/detokenize", tokens=ids)["prompt"] == "Grüße, 世界"
    assert served.client.get("/health").json() == {"status": "ok"}
    page = served.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert int(values['qwchat_requests_total{endpoint="/v1/models",status="200"}']) >= 1
    assert int(values["qwchat_generated_tokens_total"]) > 0
    assert float(values["qwchat_queue_seconds_sum"]) > 0
    assert int(values["qwchat_kv_cache_bytes"]) > 0
    assert float(values["qwchat_decode_tokens_per_second"]) > 0


def test_the_log_has_neither_prompts_nor_replies(mini: qwchat.Model) -> None:
    with serving(mini) as running:
        running.chat("an unlikely secret")
        running.refusal(CHAT, messages="an unlikely secret")
        running.client.get("/an-unlikely-secret")
        assert [" ".join(line.split()[:3]) for line in running.log] == [
            "POST /v1/chat/completions 200",
            "POST /v1/chat/completions 400",
            "- other 404",
        ]
        assert running.errors == []


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [5]}, 400, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages[0].content[0].type",
        ),
        ({"messages": [*ASK, {"role": "assistant", "content": "", "tool_calls": [{}]}]}, 400, "messages[1].tool_calls"),
        ({"messages": [{"role": "user", "content": "a b c " * 400}]}, 400, "messages"),
        ({"model": "gpt-4o"}, 404, "model"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"logit_bias": {"5": 100}}, 400, "logit_bias"),
        ({"n": 2}, 400, "n"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty"),
        ({"top_k": 1.5}, 400, "top_k"),
        ({"seed": 2**64}, 400, "seed"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**400}, 400, "max_tokens"),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"stop": [5]}, 400, "stop"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            400,
            "response_format.json_schema.schema",
        ),
        ({"guided_regex": "("}, 400, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, 400, "guided_regex"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, 400, "structured_outputs.grammar"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": []}, 400, "stream_options"),
        ({"continue_final_message": True}, 400, "messages[0].role"),
        ({"add_generation_prompt": False}, 400, "add_generation_prompt"),
        ({"chat_template_kwargs": {"messages": []}}, 400, "messages"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, 400, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_wrong_fields_are_named(served: Serving, fields: dict[str, Any], status: int, param: str) -> None:
    refusal = served.refusal(CHAT, **{"messages": ASK, **fields})
    assert (refusal["status"], refusal["param"]) == (status, param)
    assert "\n" not in refusal["message"]


def test_fields_that_change_nothing_are_ignored(served: Serving, mini: qwchat.Model) -> None:
    found = served.chat(user="me", metadata={"a": "b"}, store=True, n=1, tools=[], logit_bias={}, unknown=5, stop=None)
    assert found["choices"][0]["message"]["content"] == reply(mini).text
