"""Clients of the real program: the package of OpenAI, many at once, slow ones and ones that go away."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import qwchat
from qwchat.events import Done
from qwchat.messages import Message
from tests.clocks import PATIENCE_SECONDS, wait_for
from tests.server.processes import ServerProcess, read_all, server_process

CLIENTS = 16
ROUNDS = int(os.environ.get("QWCHAT_TEST_SERVE_ROUNDS", "20"))
"""Conversations of each client; 250 take about two minutes on two processors."""
QUESTIONS = (
    *(
        "What can you do?",
        "What is Qwen2?",
        "How do I convert a model?",
        "What is quantisation?",
        "What is 12 plus 30?",
    ),
    *("How many days has a week?", "Spell the word banana.", "What is a KV cache?", "Who are you?", "What is top-p?"),
)
NEXT = "What is a token?"
LONG = {"prompt": "a", "guided_regex": "[a-z]{5000}", "temperature": 2, "logprobs": 20, "stream": True}
"""A reply that takes all of the context window and more bytes than sockets hold."""


@pytest.fixture(scope="module")
def server(mini_folder: Path) -> Iterator[ServerProcess]:
    limits = {"stall_seconds": 0.5, "buffered_events": 64}
    with server_process(mini_folder, "--quiet", "--threads", "1", "--ctx", "2048", **limits) as running:
        yield running
        assert running.errors.count("\n") == 1, running.errors


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def answers(mini: qwchat.Model) -> dict[tuple[str, ...], str]:
    """Return the greedy replies of the API to each question, and to the next one after it, each from an empty cache."""
    found = {}
    for question in QUESTIONS:
        messages: list[Message] = [{"role": "user", "content": question}]
        found[(question,)] = greedy(mini, messages)
        messages += [{"role": "assistant", "content": found[(question,)]}, {"role": "user", "content": NEXT}]
        found[question, NEXT] = greedy(mini, messages)
    return found


def greedy(model: qwchat.Model, messages: list[Message]) -> str:
    model.cached_context.clear()
    done = list(model.chat(messages))[-1]
    assert isinstance(done, Done)
    return done.text


def ask(client: openai.OpenAI, messages: Any, *, stream: bool = False, **fields: Any) -> str:
    """Return the greedy reply, streamed or whole."""
    if not stream:
        whole = client.chat.completions.create(model="mini-q4", messages=messages, temperature=0, **fields)
        return whole.choices[0].message.content or ""
    pieces = client.chat.completions.create(model="mini-q4", messages=messages, temperature=0, stream=True, **fields)
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_the_package_of_openai(client: openai.OpenAI, answers: dict[tuple[str, ...], str]) -> None:
    wanted = answers[(QUESTIONS[0],)]
    for stream in (False, True):
        assert ask(client, user(QUESTIONS[0]), stream=stream) == wanted
        assert ask(client, user(QUESTIONS[0]), stream=stream, stop=["qwchat"]) == wanted.partition("qwchat")[0]
    assert [model.id for model in client.models.list()] == ["mini-q4"]
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [7, 8]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert isinstance(json.loads(ask(client, user("How many days has a week?"), response_format=shape))["n"], int)
    found = client.chat.completions.create(
        model="mini-q4", messages=user(QUESTIONS[0]), temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = found.choices[0].logprobs.content if found.choices[0].logprobs else None
    assert content is not None
    assert "".join(each.token for each in content) == found.choices[0].message.content
    assert [len(each.top_logprobs) for each in content] == [2, 2, 2]
    text = client.completions.create(model="mini-q4", prompt="Qwen2 is", temperature=0, max_tokens=4).choices[0].text
    assert text
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.chat.completions.create(model="other", messages=user("x"))
    with pytest.raises(openai.BadRequestError, match="temperature must be a number from 0 to 5"):
        client.chat.completions.create(model="mini-q4", messages=user("x"), temperature=9)


@pytest.mark.slow
def test_many_clients_at_once_get_the_replies_of_the_api(
    server: ServerProcess, client: openai.OpenAI, answers: dict[tuple[str, ...], str]
) -> None:
    # Each client asks for replies that the API has given alone: nothing mixes, and memory does not grow.
    wrong: list[tuple[str, ...]] = []
    done: list[int] = []

    def converse(number: int, rounds: int) -> None:
        rng = random.Random(number)
        for _ in range(rounds):
            question = rng.choice(QUESTIONS)
            for words in ((question,), (question, NEXT)):
                messages = user(question)
                if len(words) == 2:
                    messages += [{"role": "assistant", "content": answers[(question,)]}, *user(NEXT)]
                text = ask(client, messages, stream=rng.random() < 0.5)
                if text != answers[words]:
                    wrong.append((*words, text))
                done.append(1)

    def all_at_once(rounds: int) -> None:
        threads = [threading.Thread(target=converse, args=(number, rounds)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    before = server.metric("queue_seconds_count"), server.metric("queue_seconds_sum")
    all_at_once(max(1, ROUNDS // 4))
    warm = server.metric("resident_memory_bytes")
    all_at_once(ROUNDS)
    assert wrong == []
    assert server.metric("queue_seconds_count") - before[0] == len(done)
    assert server.metric("queue_seconds_sum") > before[1]
    assert server.metric("queue_length") == server.metric("running") == 0
    assert server.metric("kv_caches") == 4
    assert server.metric("resident_memory_bytes") < 1.02 * warm


def test_a_client_that_goes_away_frees_the_model(server: ServerProcess, client: openai.OpenAI) -> None:
    generated = server.metric("generated_tokens_total")
    for fields in (LONG, {**LONG, "stream": False}):
        body = json.dumps({**fields, "logprobs": None}).encode()
        with server.connect() as connection:
            connection.sendall(head(body) + body)
            wait_for(lambda: server.metric("running"), "the reply")
        wait_for(lambda: not server.metric("running"), "the end of the reply")
    assert server.metric("generated_tokens_total") - generated < 2 * 2000, "both replies ended early"
    assert ask(client, user("What is Qwen2?"), max_tokens=1)


def head(body: bytes) -> bytes:
    """Return the head of a request with this body."""
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
    )


@pytest.mark.slow
def test_a_client_that_does_not_read_is_dropped(server: ServerProcess, client: openai.OpenAI) -> None:
    # The model does not wait for it: another client gets its reply while the first one still holds its connection.
    body = json.dumps(LONG).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head(body) + body)
        assert ask(client, user("What is Qwen2?"), max_tokens=1)
        wait_for(lambda: not server.metric("running"), "the end of the reply")
        page = httpx2.get(f"{server.url}/metrics").text
        assert 'qwchat_replies_total{finish_reason="cancelled"}' in page
        # The server resets the connection, although the client has neither read nor closed it.
        poll = select.poll()
        poll.register(connection, 0)
        wait_for(lambda: poll.poll(0), "the end of the connection")
        assert b"[DONE]" not in read_all(connection)
