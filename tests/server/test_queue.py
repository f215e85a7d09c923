"""The queue in front of the model, and replies that end early."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import qwchat
from qwchat.errors import DamagedModelError, NonFiniteLogitsError
from qwchat.events import Done, TextEvent, TextStep
from qwchat.request import Prompt, Request, SamplingParams
from qwchat.server.api_errors import ApiError
from qwchat.server.jobs import Event, Job
from qwchat.server.metrics import Metrics
from qwchat.server.model_worker import ModelWorker
from tests.server.serving import pieces_of, serving

BODY: dict[str, Any] = {"prompt": "Qwen2 is", "temperature": 2, "max_tokens": 400, "seed": 3}


def make_job(*, tokens: int = 200, seconds: float = 1000.0, buffered: int = 1000) -> Job:
    request = Request(SamplingParams(temperature=3.0), 1, max_tokens=tokens, speculate=False)
    return Job(Prompt([5, 6, 7]), request, seconds, buffered)


async def events_of(job: Job) -> list[Event]:
    """Return all events of a job."""
    found: list[Event] = []
    while not (found and isinstance(found[-1], Done | Exception)):
        found += await job.next_events()
    return found


@pytest.fixture
def worker(mini: qwchat.Model) -> Iterator[ModelWorker]:
    made = ModelWorker(mini, 2, 2, Metrics(), lambda error: None)
    yield made
    made.stop()


def run(worker: ModelWorker, jobs: list[Job]) -> None:
    """Generate the replies of some jobs in this thread."""
    for job in jobs:
        worker.submit(job)
    worker.stop()
    worker.run()


def test_a_cancelled_reply_ends_at_the_next_token(worker: ModelWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        job, added = make_job(), []
        add = job.add

        def add_and_cancel(event: Event) -> None:
            added.append(event)
            if len(added) == 5:
                job.cancel()
            add(event)

        monkeypatch.setattr(job, "add", add_and_cancel)
        run(worker, [job])
        end = (await events_of(job))[-1]
        assert isinstance(end, Done)
        assert (end.finish_reason, end.stats.generated_tokens) == ("cancelled", 5)

    asyncio.run(check())


def test_a_reply_ends_when_its_time_is_over(worker: ModelWorker) -> None:
    async def check() -> None:
        job = make_job(seconds=0.0)
        run(worker, [job])
        end = (await events_of(job))[-1]
        assert isinstance(end, ApiError) or (isinstance(end, Done) and end.finish_reason == "cancelled")

    asyncio.run(check())


def test_a_reader_that_is_too_slow_gets_an_error(worker: ModelWorker) -> None:
    async def check() -> None:
        job, other = make_job(buffered=10), make_job(tokens=3)
        run(worker, [job, other])
        found = await events_of(job)
        assert len([event for event in found if isinstance(event, TextStep)]) == 10
        assert isinstance(found[-1], ApiError)
        assert found[-1].status == 408
        assert isinstance((await events_of(other))[-1], Done)

    asyncio.run(check())


def test_a_full_queue_refuses(worker: ModelWorker) -> None:
    async def check() -> None:
        jobs = [make_job(tokens=1) for _ in range(3)]
        worker.submit(jobs[0])
        worker.submit(jobs[1])
        with pytest.raises(ApiError) as caught:
            worker.submit(jobs[2])
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
        worker.discard(jobs[0], ApiError(503, "gone"))
        run(worker, [jobs[2]])
        ends = [(await events_of(job))[-1] for job in jobs]
        assert [type(end) for end in ends] == [ApiError, Done, Done]

    asyncio.run(check())


def test_the_end_of_the_server_refuses_what_waits(worker: ModelWorker) -> None:
    async def check() -> None:
        job = make_job()
        worker.submit(job)
        worker.close()
        end = (await events_of(job))[-1]
        assert isinstance(end, ApiError)
        assert end.message == "the server is shutting down"
        with pytest.raises(ApiError):
            worker.submit(make_job())

    asyncio.run(check())


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_model_is_an_answer(mini: qwchat.Model, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    errors: list[Exception] = [NonFiniteLogitsError("the model computed NaN"), ValueError("a secret of the prompt")]
    messages = ["the model computed NaN", "internal error: ValueError"]

    def fail(*arguments: object) -> Iterator[TextEvent]:
        yield TextStep("a", 5)
        raise errors[0]

    with serving(mini) as running:
        with monkeypatch.context() as patched:
            patched.setattr(mini, "stream", fail)
            for message in messages:
                answer = running.client.post("/v1/completions", json={**BODY, "stream": stream})
                assert message in answer.text
                assert "secret" not in answer.text
                assert answer.status_code == (200 if stream else 500)
                assert "[DONE]" not in answer.text
                errors.append(errors.pop(0))
        assert [type(error) for error in running.errors] == [NonFiniteLogitsError, ValueError]
        assert running.post("/v1/completions", **BODY)["usage"]["completion_tokens"] > 0


def test_a_damaged_model_is_an_answer(mini: qwchat.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> None:
        raise DamagedModelError(mini.folder.path, {"x": "y"})

    with serving(mini) as running, monkeypatch.context() as patched:
        patched.setattr(mini.integrity, "raise_if_damaged", damaged)
        answer = running.client.post("/v1/completions", json=BODY)
        assert answer.status_code == 500
        assert "is damaged" in answer.json()["error"]["message"]


def test_a_stream_gets_comments_while_it_waits(mini: qwchat.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    free, stream = threading.Event(), mini.stream

    def wait(*arguments: Any) -> Iterator[TextEvent]:
        free.wait()
        yield from stream(*arguments)

    with serving(mini, comment_seconds=0.01) as running:
        monkeypatch.setattr(mini, "stream", wait)
        counted = running.service.limits.comment_seconds
        threading.Timer(20 * counted, free.set).start()
        answer = running.client.post("/v1/completions", json={**BODY, "stream": True})
        assert answer.text.startswith(": the model is busy\n\n")
        assert pieces_of(answer.text)
