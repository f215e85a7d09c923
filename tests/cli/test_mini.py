"""The complete path with the built-in model: from its bf16 checkpoint to a streamed reply."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwchat.models_folder import embedded_checkpoint, is_checkpoint
from tests.chat.pty import Terminal
from tests.starter import REAL, run_to_end

PROGRAM = "from qwchat.cli.main import main; main()"

pytestmark = pytest.mark.skipif(
    not is_checkpoint(embedded_checkpoint()), reason="models/mini holds no weights yet: models/recipe trains them"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mini") / "models"


@pytest.fixture(scope="module")
def first(models: Path) -> subprocess.CompletedProcess[bytes]:
    """Run README's first command with an empty models folder."""
    return qwchat("-p", "What can you do?", models=models)


def qwchat(*arguments: str, models: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return run_to_end(arguments, {**os.environ, "QWCHAT_MODELS": str(models)}, stdin, entry=REAL)


def test_the_first_run_converts_and_answers(models: Path, first: subprocess.CompletedProcess[bytes]) -> None:
    assert first.returncode == 0, first.stderr
    answer = first.stdout.decode()
    assert "qwchat" in answer
    assert "```" in answer or "- " in answer, "the answer is Markdown"
    notice, *_, figures = first.stderr.decode().splitlines()
    assert notice == f"qwchat: converting mini into {models}/mini-q4 (first use)"
    assert "s to first token · " in figures
    assert " · prefill " in figures


def test_the_second_run_converts_nothing_and_gives_the_same_reply(
    models: Path, first: subprocess.CompletedProcess[bytes]
) -> None:
    second = qwchat("-p", "What can you do?", "--temp", "0", models=models)
    assert len(second.stderr.splitlines()) == 1
    if json.loads((embedded_checkpoint() / "generation_config.json").read_text()).get("do_sample") is False:
        assert second.stdout == first.stdout


def test_piped_text_is_answered(models: Path, first: subprocess.CompletedProcess[bytes]) -> None:
    result = qwchat("--json", models=models, stdin=b"What is 2 + 3?\n")
    reply = json.loads(result.stdout)
    assert (result.returncode, result.stderr, reply["finish_reason"]) == (0, b"", "stop")
    assert reply["text"]
    assert reply["model"]["name"] == "mini-q4"


def test_a_typed_control_token_is_text(models: Path, first: subprocess.CompletedProcess[bytes]) -> None:
    lengths = [
        json.loads(qwchat("-p", prompt, "--json", "--max-tokens", "1", models=models).stdout)["tokens"]["prompt"]
        for prompt in ("a", "a<|im_end|>")
    ]
    assert lengths[1] > lengths[0] + 1


def test_files_are_counted_in_tokens(models: Path, first: subprocess.CompletedProcess[bytes], tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n\n```\n<|im_end|>\n```\n" + "line\n" * 50)
    arguments = ("-f", f"{tmp_path}/*.md:1-20", "-p", "What is it?", "--json", "--max-tokens", "1")
    result = qwchat(*arguments, models=models)
    tokens = json.loads(result.stdout)["tokens"]
    [notice] = result.stderr.decode().splitlines()
    assert notice.startswith(f"qwchat: {tmp_path}/notes.md:1-20, ")
    assert notice.endswith(f"; context {tokens['prompt']:,}/{tokens['context']:,} with this message")


def test_a_conversation_on_a_terminal(models: Path, first: subprocess.CompletedProcess[bytes], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "chat", "mini", "--temp", "0"]
    variables = {"QWCHAT_MODELS": str(models), "HOME": os.environ.get("HOME", "/")}
    with Terminal(models=tmp_path, command=command, variables=variables) as terminal:
        terminal.prompt()
        terminal.type("What can you do?\r")
        terminal.wait("What can you do?", "s to first token")
        terminal.prompt()
        terminal.type("Hello\r")
        # Statistics with long numbers use the short form.
        terminal.wait_until(
            lambda: re.search(r"tokens \(\d+ new\)| · \d+ new ·", terminal.text) is not None, "new tokens"
        )
        terminal.prompt()
        terminal.type(f"/save {tmp_path}/talk.json\r")
        terminal.wait("saved to")
        terminal.type("\x04")
        assert terminal.end() == 0
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert all(message["content"] for message in messages)


def talk(models: Path, sessions: Path, *arguments: str, lines: str) -> subprocess.Popen[bytes]:
    """Start a chat that reads `lines` and then waits for more."""
    chat = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "chat", "mini", "-q", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "QWCHAT_MODELS": str(models), "QWCHAT_SESSIONS": str(sessions)},
    )
    assert chat.stdin is not None
    chat.stdin.write(lines.encode())
    chat.stdin.flush()
    return chat


@pytest.mark.slow
def test_a_killed_chat_continues_with_the_same_text(
    models: Path, first: subprocess.CompletedProcess[bytes], tmp_path: Path
) -> None:
    settings = ("--temp", "1.1", "--repeat-penalty", "1.05", "--seed", "4")
    whole, _ = talk(models, tmp_path, "--no-save", *settings, lines="What can you do?\n").communicate()
    for number in range(5):  # Until one is killed before its reply is complete.
        chat = talk(models, tmp_path / str(number), *settings, lines="What can you do?\n")
        assert chat.stdout is not None
        said = chat.stdout.read(1)
        chat.kill()
        said += chat.communicate()[0]
        if len(said) < len(whole):
            break
    assert whole.startswith(said)
    # The settings of the question apply, not those of the other process.
    after, _ = talk(models, tmp_path / str(number), "--continue", lines="/continue\n").communicate()
    assert after == whole
