"""`--endpoint`: answers of a scripted server, in pipes, sessions and JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runs import FAKE, call, environment
from tests.clocks import PATIENCE_SECONDS
from tests.remote.scripted_server import (
    DONE,
    Action,
    ScriptedServer,
    answer,
    delta,
    event,
    models,
    reply,
    silence,
    stream,
)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer([reply("Good ", "day.")]) as scripted:
        yield scripted


def ask(
    server: ScriptedServer, *arguments: str, models: Path, prompt: str = "hi", code: int = 0, **script: Any
) -> tuple[str, list[str]]:
    """Ask in this process. Return standard output, and the lines of standard error with HOST for the server."""
    result = call("--endpoint", server.url, "-p", prompt, *arguments, models=models, **script)
    assert result.returncode == code, result.stderr
    lines = result.stderr.decode().replace(server.name, "HOST").splitlines()
    return result.stdout.decode(), [line.removeprefix("qwchat: ") for line in lines]


def session_events(models: Path) -> list[Any]:
    [file] = (models / "home/sessions").glob("*/session.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_reply_and_its_figures(server: ScriptedServer, tmp_path: Path) -> None:
    out, [figures] = ask(server, "-s", "Be brief", models=tmp_path, prompt="Hello")
    assert out == "Good day.\n"
    assert "12 prompt tokens (7 new, 5 cached)" in figures
    assert "context 15/2,048 · seed " in figures
    [sent] = server.chats
    assert sent["messages"] == [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
    assert sent["model"] == "first"
    assert "temperature" not in sent
    assert "authorization" not in server.seen[-1].headers


def test_settings_that_are_given_are_sent(server: ScriptedServer, tmp_path: Path) -> None:
    ask(server, "--temp", "0", "--top-k", "4", "--max-tokens", "9", "--seed", "3", models=tmp_path)
    [sent] = server.chats
    assert (sent["temperature"], sent["top_k"], sent["max_tokens"], sent["seed"]) == (0, 4, 9, 3)
    assert "top_p" not in sent


def test_json_has_null_for_what_a_server_does_not_say(server: ScriptedServer, tmp_path: Path) -> None:
    out, notices = ask(server, "--json", models=tmp_path)
    assert notices == []
    value = json.loads(out)
    assert value["text"] == "Good day."
    assert value["model"] == {
        "name": "first",
        "path": None,
        "fingerprint": None,
        "preset": None,
        "bits_per_weight": None,
        "device": None,
        "gpu_layers": None,
        "activations": None,
        "endpoint": f"{server.url}/v1",
    }
    assert value["tokens"] == {
        "prompt": 12,
        "cached": 5,
        "read": 7,
        "generated": 3,
        "drafted": None,
        "accepted": None,
        "context": 2048,
        "context_used": 15,
    }
    assert value["timings"]["prefill_seconds"] is value["settings"]["temperature"] is None


def test_jsonl_and_logprobs(tmp_path: Path) -> None:
    content = {"content": [{"token": "Yes", "logprob": -0.25, "top_logprobs": [{"token": "Yes", "logprob": -0.25}]}]}
    first = event({"choices": [{"index": 0, "delta": {"content": "Yes"}, "logprobs": content}]})
    with ScriptedServer([stream(delta(reasoning_content="Hm"), first, delta(reason="stop"), DONE)]) as server:
        out, _ = ask(server, "--jsonl", "--logprobs", "1", models=tmp_path)
    start, thought, text, done = map(json.loads, out.splitlines())
    assert start["event"] == "start"
    assert thought == {"event": "text", "text": "Hm", "token_id": None, "reasoning": True}
    assert (text["text"], text["logprobs"]["logprob"]) == ("Yes", -0.25)
    assert (done["reasoning"], done["text"], done["tokens"]["estimated"]) == ("Hm", "Yes", True)


def test_several_replies_constraints_and_blocks(tmp_path: Path) -> None:
    with ScriptedServer([reply("yes"), reply("perhaps")]) as server:
        out, lines = ask(server, "-n", "2", "--choices", "yes,no", "--seed", "5", "-q", models=tmp_path, code=6)
        assert out == "yes\n\nperhaps\n"
        assert lines == ["error: the reply does not meet --choices: the server does not keep to it"]
        assert [sent["seed"] for sent in server.chats] == [5, 6]
        assert server.chats[0]["structured_outputs"] == {"choice": ["yes", "no"]}
    with ScriptedServer([reply("See:\n```py\nx = 1\n```\nDone.")]) as server:
        assert ask(server, "-x", "-q", models=tmp_path)[0] == "x = 1\n"


BROKEN: list[tuple[Action, int, str]] = [
    (stream(delta("one "), delta("two"), cut=True), 1, "HOST closed the connection before its answer was complete"),
    (stream(delta("one "), delta("two"), event({"error": {"message": "boom"}})), 1, "HOST stopped with an error: boom"),
]


@pytest.mark.parametrize(("action", "code", "message"), BROKEN)
def test_a_reply_that_breaks_off_stays_in_the_session(tmp_path: Path, action: Action, code: int, message: str) -> None:
    with ScriptedServer([action, reply("Hello")]) as server:
        out, lines = ask(server, "--session", "talk", models=tmp_path, code=code)
        assert out == "one two\n"
        assert [line for line in lines if line.startswith("error: ")] == [line for line in lines if message in line]
        nodes = [each["node"] for each in session_events(tmp_path) if "node" in each]
        assert [(node["role"], node["content"]) for node in nodes] == [("user", "hi"), ("assistant", "one two")]
        assert nodes[1]["finish_reason"] == "cancelled"
        # The session goes on from there.
        assert ask(server, "--session", "talk", "-q", models=tmp_path, prompt="more")[0] == "Hello\n"
        assert [each["content"] for each in server.chats[1]["messages"]] == ["hi", "one two", "more"]


def test_a_question_without_a_reply_stays_in_the_session(tmp_path: Path) -> None:
    with ScriptedServer([answer(500, {"error": "boom"})]) as server:
        out, [line] = ask(server, "--session", "talk", models=tmp_path, code=1)
    assert (out, line) == ("", "error: HOST failed; its log may say why (HTTP 500): boom")
    assert [each["node"]["content"] for each in session_events(tmp_path) if "node" in each] == ["hi"]


def test_a_thought_that_breaks_off_is_no_answer(tmp_path: Path) -> None:
    with ScriptedServer([stream(delta(reasoning_content="I see"), cut=True), reply("Hello")]) as server:
        ask(server, "--session", "talk", models=tmp_path, code=1)
        ask(server, "--session", "talk", "-q", models=tmp_path, prompt="more")
        assert server.chats[1]["messages"][1] == {"role": "assistant", "content": ""}


def test_an_error_in_json(tmp_path: Path) -> None:
    with ScriptedServer([stream(delta("one"), cut=True)]) as server:
        out, _ = ask(server, "--json", models=tmp_path, code=1)
    value = json.loads(out)
    assert (value["text"], value["finish_reason"], value["exit_code"]) == ("one", "error", 1)


def test_which_model(tmp_path: Path) -> None:
    others = {"/v1/models": models("first", "second:latest", context_length=512)}
    with ScriptedServer([reply("a")], others) as server:
        _, lines = ask(server, models=tmp_path)
        assert lines[0] == "using first, the first of 2 models at HOST; --model NAME chooses another"
        assert ask(server, "-m", "second", "-q", models=tmp_path) == ("a\n", [])
        assert [sent["model"] for sent in server.chats] == ["first", "second:latest"]
        _, [line] = ask(server, "-m", "second:lastet", models=tmp_path, code=3)
        assert line == (
            "error: HOST has no model 'second:lastet': did you mean second:latest?; for a model on this machine, "
            "give --endpoint none"
        )
    with ScriptedServer([reply("a")], {}) as server:
        _, [line] = ask(server, models=tmp_path, code=1)
        assert line == "error: HOST does not list its models: give --model NAME"
        _, lines = ask(server, "-m", "any", models=tmp_path)
        assert lines[0] == (
            "HOST does not say how long its context window is: assuming 4,096 tokens, which --ctx N changes"
        )
        assert server.chats[-1]["model"] == "any"


def test_a_context_window_that_is_too_large(server: ScriptedServer, tmp_path: Path) -> None:
    _, [line] = ask(server, "--ctx", "4096", models=tmp_path, code=2)
    assert line == "error: --ctx must be from 1 to 2,048 tokens, the maximum of HOST, not 4,096"
    _, [line] = ask(server, "--ctx", "64", models=tmp_path, prompt="word " * 200, code=4)
    assert line.startswith("error: the prompt has ")
    assert server.chats == []


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWCHAT_ENDPOINT_KEY", "sk-secret")
    ask(server, "--session", "talk", "--json", models=tmp_path)
    assert {each.headers["authorization"] for each in server.seen} == {"Bearer sk-secret"}
    shown = call("config", models=tmp_path)
    assert b"sk-secret" not in shown.stdout + shown.stderr
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not any(b"sk-secret" in data for data in written)
    refused = call("--endpoint", "http://192.0.2.1", "-p", "hi", models=tmp_path)
    assert refused.returncode == 2
    assert b"QWCHAT_ENDPOINT_KEY would travel unencrypted to 192.0.2.1: use https" in refused.stderr


def test_the_endpoint_of_a_session_is_not_asked_silently(server: ScriptedServer, tmp_path: Path) -> None:
    ask(server, "--session", "talk", "-m", "first", models=tmp_path)
    host = next(each["node"]["model_name"] for each in session_events(tmp_path) if each.get("node", {}).get("model"))
    assert host == f"first at {server.name}"
    result = call("--session", "talk", "-p", "more", models=tmp_path, replies=["Here."])
    assert result.stdout == b"Here.\n"
    assert f"the session used first on the server {server.name}: --endpoint URL continues there" in str(result.stderr)
    assert len(server.chats) == 1


def test_a_session_returns_to_the_configured_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"/v1/models": models("first", "second", max_model_len=512)}
    with ScriptedServer([reply("a")], others) as server:
        ask(server, "--session", "talk", "-m", "second", models=tmp_path)
        monkeypatch.setenv("QWCHAT_ENDPOINT", server.url)
        assert call("-c", "-p", "more", models=tmp_path).returncode == 0
        assert [sent["model"] for sent in server.chats] == ["second", "second"]
        # A session of a model on this machine goes on there.
        call("--session", "other", "-p", "hi", "--endpoint", "none", models=tmp_path)
        assert call("--session", "other", "-p", "hi", models=tmp_path, replies=["Here."]).stdout == b"Here.\n"
        assert len(server.chats) == 2


def test_control_characters_of_a_server_are_shown(tmp_path: Path) -> None:
    listed = models("first\x1b[31m", "good", max_model_len=512)
    with ScriptedServer([reply("\x1b[31mred\x07")], {"/v1/models": listed}) as server:
        out, _ = ask(server, "--json", models=tmp_path)
        assert json.loads(out)["text"] == "\x1b[31mred\x07"
        assert "\x1b" not in out
        assert server.chats[0]["model"] == "good"


def test_the_context_is_kept_by_dropping_turns(tmp_path: Path) -> None:
    others = {"/v1/models": models("first", max_model_len=100)}
    usage = {"prompt_tokens": 40, "completion_tokens": 20}
    with ScriptedServer([reply("word " * 20, usage=usage)], others) as server:
        for _ in range(2):
            ask(server, "--session", "talk", "--overflow", "drop", models=tmp_path, prompt="word " * 30)
        assert len(server.chats[1]["messages"]) < 3


IMPORTS = """
import sys
from qwchat.cli.main import main
try:
    main(sys.argv[1:])
finally:
    found = {name.partition(".")[0] for name in sys.modules} & {"numba", "llvmlite", "tokenizers", "jinja2", "httpx2"}
    print(*sorted(found | ({"qwchat.api", "qwchat.cpu"} & {*sys.modules})), file=sys.stderr)
"""


def test_an_endpoint_needs_no_engine_and_a_start_without_one_no_client(server: ScriptedServer, tmp_path: Path) -> None:
    def imported(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-c", IMPORTS, *arguments],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return ended.stderr.splitlines()[-1]

    assert imported("--endpoint", server.url, "-p", "hi", "-q") == "httpx2"
    assert "httpx2" not in imported("-p", "hi", "-m", str(tmp_path / "missing"))


def test_ctrl_c_while_the_server_is_silent(tmp_path: Path) -> None:
    with ScriptedServer([silence(delta("one "), delta("two"))]) as server:
        process = subprocess.Popen(
            [sys.executable, str(FAKE), "--endpoint", server.url, "-p", "hi", "--session", "talk"],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.read(7) == b"one two"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_SECONDS)
        server.wait_until_closed()
        assert process.returncode == 130
    nodes = [each["node"]["content"] for each in session_events(tmp_path) if "node" in each]
    assert nodes == ["hi", "one two"]
