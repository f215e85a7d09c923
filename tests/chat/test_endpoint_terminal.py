"""A chat through a scripted server, in a pseudo-terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat.pty import Terminal
from tests.cli.runs import run
from tests.remote.scripted_server import (
    DONE,
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
def others() -> Iterator[ScriptedServer]:
    """Run a second server with models of its own."""
    with ScriptedServer([reply("Elsewhere.")], {"/v1/models": models("far", max_model_len=512)}) as server:
        yield server


def say(terminal: Terminal, text: str, *shown: str) -> None:
    terminal.prompt()
    terminal.type(f"{text}\r")
    terminal.wait(f"> {text}", *shown)


def test_a_chat_through_a_server(tmp_path: Path) -> None:
    replies = [
        reply("**Good** day."),
        stream(
            delta(reasoning_content="Hm, "), delta(reasoning_content="well"), delta("Yes."), delta(reason="stop"), DONE
        ),
        silence(delta("one "), delta("two")),
        silence(),
        stream(delta("half a "), delta("reply"), event({"error": {"message": "out of memory"}})),
        answer(500, {"error": "boom"}),
        reply("At last."),
    ]
    with (
        ScriptedServer(replies) as server,
        Terminal("chat", "--endpoint", server.url, "--session", "talk", models=tmp_path) as terminal,
    ):
        terminal.wait(f"first at {server.name}, context 2,048 tokens; /help for help")
        say(terminal, "hello", "Good day.", "12 prompt tokens", "context 15/2,048")
        assert b"\x1b[1mGood" in terminal.raw
        say(terminal, "true?", "Yes.", "thought for")
        say(terminal, "count", "one two")
        terminal.type("\x03")
        terminal.wait("stopped; /continue resumes the reply")
        server.wait_until_closed()
        say(terminal, "/continue", f"{server.name} cannot continue a reply: ask for another one")
        say(terminal, "are you there?")
        terminal.wait_until(lambda: len(server.chats) == 4, "the fourth request")
        terminal.type("\x1b")
        terminal.wait("stopped; no tokens generated, /retry tries again")
        server.wait_until_closed(2)
        say(terminal, "/retry", "half a reply", f"{server.name} stopped with an error: out of memory")
        say(terminal, "/retry", f"{server.name} failed; its log may say why (HTTP 500): boom")
        say(terminal, "/retry", "At last.")
        say(terminal, "/context", "(estimate: the tokenizer is on ")
        say(terminal, "/set kv q8", f"the model runs on {server.name}, where kv cannot be changed")
        say(terminal, "/set temp", "the server's default")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0
        spoken = [each["content"] for each in server.chats[-1]["messages"]]
        assert spoken == ["hello", "**Good** day.", "true?", "Yes.", "count", "one two", "are you there?"]
    shown = run("sessions", "show", "talk", models=tmp_path).stdout.decode()
    assert "half a reply" not in shown
    assert "At last." in shown
    assert f"## first at {server.name}" in shown


def test_models_here_and_there(tmp_path: Path, others: ScriptedServer) -> None:
    listed = {"/v1/models": models("first", "second", max_model_len=2048)}
    with (
        ScriptedServer([reply("Remote.")], listed) as server,
        Terminal(
            "chat",
            "--endpoint",
            server.url,
            models=tmp_path,
            replies=["Local."],
            variables={"QWCHAT_ENDPOINT_KEY": "sk-secret"},
        ) as terminal,
    ):
        terminal.wait("using first, the first of 2 models at ", "--model NAME chooses another")
        say(terminal, "/model")
        terminal.wait_until(
            lambda: f"* first on {server.name} second on {server.name} mini" in " ".join(terminal.text.split()),
            "the list",
        )
        say(terminal, "/model second", f"switched to second at {server.name}, context 2,048 tokens")
        say(terminal, "hi", "Remote.")
        assert server.chats[-1]["model"] == "second"
        say(terminal, "/model second", "is already the model of this chat")
        say(terminal, "/model mini", "switched to mini at 4.88 bits per weight, context 2,048 tokens")
        say(terminal, "and here?", "Local.")
        say(terminal, f"/model {others.url}", f"switched to far at {others.name}, context 512 tokens")
        terminal.wait(f"the key from QWCHAT_ENDPOINT_KEY is for {server.name} and is not sent to {others.name}")
        say(terminal, "and there?", "Elsewhere.")
        assert [each["content"] for each in others.chats[0]["messages"]] == [
            "hi",
            "Remote.",
            "and here?",
            "Local.",
            "and there?",
        ]
        assert all("authorization" not in each.headers for each in others.seen)
        assert all(each.headers["authorization"] == "Bearer sk-secret" for each in server.seen)
        say(terminal, "/model http://127.0.0.1:1", "cannot connect to 127.0.0.1:1")
        say(terminal, "/model http://me:pw@a.org", "the URL must not contain a user or a password")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0
