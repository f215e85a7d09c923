"""The chat's own client: replies through `qwchat serve` are those of the model in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwchat
from qwchat.events import Done
from qwchat.messages import Message
from qwchat.remote.client import EndpointClient
from qwchat.remote.model import RemoteModel
from qwchat.request import Request, SamplingParams
from qwchat.settings.endpoint import Endpoint
from tests.clocks import PATIENCE_SECONDS
from tests.starter import REAL, run_to_end

pytestmark = pytest.mark.slow
ASK: list[Message] = [{"role": "user", "content": "What can you do?"}]


@pytest.fixture(scope="module")
def url(mini_folder: Path) -> Iterator[str]:
    """Serve the built-in model in a process of its own."""
    program = "from qwchat.cli.main import main; main()"
    words = ["serve", str(mini_folder), "--port", "0", "--ctx", "512"]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    yield next(line.partition(" at ")[2].strip() for line in process.stderr if " at http://" in line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_SECONDS)


def final(
    model: RemoteModel | qwchat.Model, messages: list[Message], *, continuing: bool = False, **request: int
) -> Done:
    *_, done = model.stream(model.prompt(messages, continuing=continuing), Request(SamplingParams(), 1, **request))
    assert isinstance(done, Done)
    return done


def test_the_same_greedy_reply_here_and_through_the_server(url: str, mini: qwchat.Model) -> None:
    client = EndpointClient(Endpoint.parse(url, "url"))
    listed = client.models()
    assert listed is not None
    remote = RemoteModel(client, listed[0])
    here, there = final(mini, ASK), final(remote, ASK)
    assert there.text == here.text
    assert (there.stats.prompt_tokens, there.stats.generated_tokens, there.stats.context) == (
        here.stats.prompt_tokens,
        here.stats.generated_tokens,
        512,
    )
    assert not there.stats.estimated
    cut = final(remote, ASK, max_tokens=8)
    assert cut.finish_reason == "length"
    spoken: list[Message] = [*ASK, {"role": "assistant", "content": cut.text}]
    assert final(remote, spoken, continuing=True).text == here.text
    assert client.left_out == {}
    assert len(remote.encode("word " * 500)) == len(mini.encode("word " * 500))


def test_the_command_line_through_the_server(url: str, tmp_path: Path) -> None:
    variables = {**os.environ, "QWCHAT_SESSIONS": str(tmp_path / "sessions"), "QWCHAT_CONFIG": str(tmp_path)}

    def ask(*arguments: str) -> object:
        ended = run_to_end(("--endpoint", url, "--json", "--temp", "0", *arguments), variables, entry=REAL)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)["text"]

    schema = (
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'
    )
    reply = ask("-p", "Give me a number", "--json-schema", schema, "--max-tokens", "40")
    assert set(json.loads(str(reply))) == {"n"}
    assert ask("-p", "Is 7 odd?", "--choices", "perhaps,never") in ("perhaps", "never")
    assert ask("-p", "What is 7 + 8?", "--regex", "[0-9]{2}").isdecimal()  # type: ignore[attr-defined]
