"""Servers that fail, break off, are silent or busy, and requests that are cancelled."""

from __future__ import annotations

import pytest

from qwchat.errors import EndpointError, ModelError, PromptTooLongError, QwchatError
from qwchat.events import TextStep
from qwchat.request import Request, SamplingParams
from tests.remote.asking import HELLO, Asked
from tests.remote.scripted_server import Action, answer, delta, event, reply, silence, stream

FAILURES: list[tuple[Action, type[QwchatError], str]] = [
    (
        answer(401, {"error": {"message": "bad sk-secret"}}),
        EndpointError,
        "HOST does not accept the key from a test (HTTP 401): replace it",
    ),
    (
        answer(403, {"detail": "no sk-secret\x1b[31m\nhere"}),
        EndpointError,
        "HOST refuses access; the key may lack a permission (HTTP 403): no …␛[31m here",
    ),
    (
        answer(404, b"<html>", "text/html"),
        EndpointError,
        "HOST has no /v1/chat/completions; is this the URL of an OpenAI-compatible server? (HTTP 404)",
    ),
    (
        answer(404, {"object": "error", "message": "The model `m` does not exist.", "code": 404}),
        ModelError,
        "HOST has no model m: The model `m` does not exist.",
    ),
    (answer(500, b"boom", "text/plain"), EndpointError, "HOST failed; its log may say why (HTTP 500): boom"),
    (
        answer(307, None, Location="http://elsewhere/v1"),
        EndpointError,
        "HOST redirects to http://elsewhere/v1, which is not followed: use the URL of the server itself",
    ),
    (
        answer(429, {"error": "slow down"}, Retry_After="3600"),
        EndpointError,
        "HOST is busy (HTTP 429): slow down: try again in 3,600 s",
    ),
    (
        answer(400, {"error": {"message": "This model's maximum context length is 2048 tokens."}}),
        PromptTooLongError,
        "the prompt does not fit in the context window at HOST: This model's maximum context length is 2048 tokens.: "
        "shorten the prompt",
    ),
    (
        answer(422, {"detail": [{"msg": "wrong", "loc": ["body", "x"]}]}),
        EndpointError,
        "HOST refused the request (HTTP 422): wrong",
    ),
    (
        answer(200, b"<html></html>", "text/html"),
        EndpointError,
        "HOST answers with text/html, not with a chat completion: is http://HOST/v1 right?",
    ),
    (
        answer(200, b"hello", "text/plain"),
        EndpointError,
        "HOST answers with text/plain, not with a chat completion: is http://HOST/v1 right?",
    ),
    (answer(200, {"error": {"message": "no\nluck"}}), EndpointError, "HOST stopped with an error: no luck"),
    (
        answer(200, b"x", "text/event-stream", Content_Encoding="gzip"),
        EndpointError,
        "HOST compresses its answer although it was asked not to: check its proxy",
    ),
    (
        stream(event(b"[1]")),
        EndpointError,
        "HOST sent an event that is not a JSON object: is it an OpenAI-compatible server?",
    ),
    (
        stream(event(b"[" * 100_000)),
        EndpointError,
        "HOST sent an event that is not a JSON object: is it an OpenAI-compatible server?",
    ),
    (
        stream(b"data: " + b"x" * (5 << 20)),
        EndpointError,
        "HOST sent more than 3,145,728 bytes, and the reply was stopped",
    ),
    (
        lambda connection: connection.send(b"nonsense\r\n\r\n"),
        EndpointError,
        "HOST closed the connection before its answer was complete: try again",
    ),
]


@pytest.mark.parametrize(("action", "kind", "message"), FAILURES)
def test_failures_before_a_reply(action: Action, kind: type[QwchatError], message: str) -> None:
    with Asked(action) as asked:
        asked.ask()
        assert type(asked.error) is kind
        assert asked.message == message
        assert asked.text == ""


BREAKS: list[tuple[Action, str]] = [
    (
        stream(delta("one "), delta("two"), cut=True),
        "HOST closed the connection before its answer was complete: try again",
    ),
    (stream(delta("one "), delta("two")), "HOST ended the connection before the reply was complete: try again"),
    (
        stream(delta("one "), delta("two"), event({"error": {"message": "out of memory", "code": 500}})),
        "HOST stopped with an error: out of memory",
    ),
    (
        stream(delta("one "), delta("two"), b"data: {broken\n\n"),
        "HOST sent an event that is not a JSON object: is it an OpenAI-compatible server?",
    ),
]


@pytest.mark.parametrize(("action", "message"), BREAKS)
def test_a_reply_that_breaks_off_keeps_its_text(action: Action, message: str) -> None:
    with Asked(action) as asked:
        asked.ask()
        assert asked.text == "one two"
        assert asked.message == message


def test_held_back_text_is_kept_when_a_reply_breaks_off() -> None:
    with Asked(stream(delta("<thi"), cut=True)) as asked:
        assert asked.ask().text == "<thi"


def test_silence_ends_at_the_time_out() -> None:
    with Asked(silence(delta("one")), seconds=0.2) as asked:
        asked.ask()
        assert asked.text == "one"
        assert asked.message == (
            "HOST sent nothing for 0.2 s: check the server, or allow more time with endpoint_timeout"
        )
        asked.server.wait_until_closed()


def test_nobody_listens() -> None:
    with Asked(reply("a")) as asked:
        asked.server.__exit__(None, None, None)
        asked.ask()
    assert str(asked.error).startswith(f"cannot connect to {asked.server.name} (")


@pytest.mark.parametrize("pieces", [(), (delta("one "), delta("two"))])
def test_cancelling_closes_the_stream(pieces: tuple[bytes, ...]) -> None:
    with Asked(silence(*pieces)) as asked:

        def cancel() -> bool:
            return bool(asked.server.chats) and asked.text == ("one two" if pieces else "")

        asked.ask(cancel=cancel)
        asked.server.wait_until_closed()
        assert asked.done.finish_reason == "cancelled"
        assert asked.done.text == ("one two" if pieces else "")
        stats = asked.done.stats
    assert stats.estimated
    assert (stats.time_to_first_token is None) is not bool(pieces)


def test_closing_the_generator_closes_the_stream() -> None:
    with Asked(silence(delta("one"))) as asked:
        prompt = asked.model.prompt(HELLO)
        events = asked.model.stream(prompt, Request(SamplingParams(), 1))
        assert next(events) == TextStep("one", None, unnamed_tokens=1)
        events.close()
        asked.server.wait_until_closed()


@pytest.mark.parametrize("fields", [{}, {"Retry_After": "0"}])
def test_a_busy_server_is_asked_again(fields: dict[str, str]) -> None:
    busy = answer(429, {"error": {"message": "busy"}}, **fields)
    with Asked(busy, answer(503, b""), reply("Hi")) as asked:
        assert asked.ask().done.text == "Hi"
        assert len(asked.server.chats) == 3
        assert len(asked.notices) == 2
        assert asked.notices[0] == f"{asked.server.name} is busy (HTTP 429): trying again in 0 s"


def test_a_server_that_stays_busy() -> None:
    with Asked(answer(429, {"error": {"message": "busy"}})) as asked:
        asked.ask()
        assert asked.message == "HOST is busy (HTTP 429): busy: try again later"
        assert len(asked.server.chats) == 4


def test_waiting_for_a_busy_server_can_be_cancelled() -> None:
    with Asked(answer(429, {}, Retry_After="50")) as asked:
        assert asked.ask(cancel=lambda: bool(asked.notices)).done.finish_reason == "cancelled"
