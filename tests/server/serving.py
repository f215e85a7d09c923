"""The application in this process: its endpoints with a real model and without sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.testclient import TestClient

import qwchat
from qwchat.server.endpoints import make_app
from qwchat.server.guards import AccessRules
from qwchat.server.metrics import Metrics
from qwchat.server.model_worker import ModelWorker
from qwchat.server.server_limits import ServerLimits
from qwchat.server.service import Service

BASE = "http://127.0.0.1:8080"
NAME = "mini"


@dataclass
class Serving:
    """A running application.

    Attributes:
        client: sends requests.
        service: the model with its queue.
        log: lines of the log.
        errors: unexpected errors.
    """

    client: TestClient
    service: Service
    log: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def post(self, path: str, /, **body: Any) -> Any:
        """Return the JSON answer to a request that succeeds."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, text: str = "What can you do?", **fields: Any) -> Any:
        """Return the whole reply to one message, greedy if not said otherwise."""
        body = {"temperature": 0, "messages": [{"role": "user", "content": text}], **fields}
        return self.post("/v1/chat/completions", **body)

    def stream(self, path: str, /, **body: Any) -> list[Any]:
        """Return the pieces of a stream."""
        answer = self.client.post(path, json={**body, "stream": True})
        assert answer.status_code == 200, answer.text
        return pieces_of(answer.text)

    def refusal(self, path: str, /, **body: Any) -> Any:
        """Return the error of a request that is refused."""
        answer = self.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code >= 400, answer.text
        return {"status": answer.status_code, **answer.json()["error"]}


def pieces_of(text: str) -> list[Any]:
    """Return the pieces of a stream that ends as it must."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@contextmanager
def serving(model: qwchat.Model, *, keep: int = 4, token: str | None = None, **limits: Any) -> Iterator[Serving]:
    """Yield a running application; `limits` are fields of ServerLimits."""
    errors: list[Exception] = []
    log: list[str] = []
    chosen, metrics = ServerLimits(**limits), Metrics()
    worker = ModelWorker(model, keep, chosen.waiting, metrics, errors.append)
    service = Service(model, (NAME,), worker, metrics, chosen, loop_guard=1000)
    app = make_app(service, AccessRules(8080, chosen.head_bytes, token), log.append)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with TestClient(app, base_url=BASE) as client:
            yield Serving(client, service, log, errors)
    finally:
        worker.stop()
        thread.join()
        service.close()
