"""`/model` in a pseudo-terminal, with scripted models and with two converted ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quant import convert
from tests.chat.pty import Terminal
from tests.cli.runs import run
from tests.quant.checkpoints import make_checkpoint
from tests.starter import REAL, run_to_end
from tests.thinking import OPENED, make_thinking_checkpoint

SCRIPT = {
    "replies": ["I see\n</think>\n\nYes."],
    "reasoning": "open",
    "others": {"other": {"replies": ["No."], "reasoning": "none", "name": "other", "fingerprint": "bb"}},
}
BITS = "4.88 bits per weight, context 2,048 tokens"


def say(terminal: Terminal, text: str) -> None:
    terminal.prompt()
    terminal.type(f"{text}\r")
    terminal.wait(f"> {text}")
    terminal.prompt()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text("{}")
    return tmp_path


def test_a_chat_switches_and_the_session_remembers(models: Path) -> None:
    with Terminal("chat", "--session", "talk", models=models, **SCRIPT) as terminal:
        say(terminal, "true?")
        terminal.wait("Yes.")
        say(terminal, "/model nothing")
        terminal.wait("there is no model 'nothing'")
        say(terminal, "/model qwen3:4b")
        terminal.wait("there is no model 'qwen3:4b' here: pull it with qwchat pull qwen3:4b")
        terminal.type("/model\r")
        terminal.wait_until(lambda: "* mini damaged other damaged" in " ".join(terminal.text.split()), "the list")
        terminal.prompt()
        terminal.type("/model ot\t\r")
        terminal.wait(f"switched to other at {BITS}; 4 tokens will be evaluated again")
        say(terminal, "sure?")
        terminal.wait("No.")
        terminal.type("\x04")
        assert terminal.end() == 0
    shown = run("sessions", "show", "talk", models=models).stdout.decode()
    assert [line for line in shown.splitlines() if line in ("## mini", "## other")] == ["## mini", "## other"]
    # The session continues with the model that replied last.
    with Terminal("chat", "--session", "talk", models=models, **SCRIPT) as terminal:
        terminal.wait(f"other at {BITS}")
        assert "another model" not in terminal.prompt()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model that thinks and one that does not, of other sizes."""
    folder = tmp_path_factory.mktemp("models")
    thinking = make_thinking_checkpoint(folder / "sources/thinking", OPENED)
    plain = make_checkpoint(
        folder / "sources/plain", config_overrides={"hidden_size": 256, "max_position_embeddings": 256}
    )
    for checkpoint in (thinking, plain):
        list(convert(checkpoint, folder / checkpoint.name))
    return folder


@pytest.mark.slow
def test_two_models_of_other_shapes_and_templates(converted: Path, tmp_path: Path) -> None:
    variables = {"QWCHAT_MODELS": str(converted), "QWCHAT_SESSIONS": str(tmp_path / "sessions")}
    arguments = ("--max-tokens", "8", "--temp", "1", "--seed", "1")
    with Terminal("chat", "-m", "thinking", *arguments, models=tmp_path, entry=REAL, variables=variables) as terminal:
        say(terminal, "hello")
        broken = converted / "broken"
        broken.mkdir()
        (broken / "manifest.json").write_text("{}")
        say(terminal, "/model broken")
        terminal.wait(f"{broken}")
        broken.joinpath("manifest.json").unlink()
        broken.rmdir()
        say(terminal, "/model plain")
        terminal.wait("switched to plain at ", "context 256 tokens; ", " will be evaluated again")
        say(terminal, "the hell")
        say(terminal, "/model thinking")
        terminal.wait("switched to thinking at ", "context 512 tokens; ")
        say(terminal, "hello")
        terminal.type("\x04")
        assert terminal.end() == 0
    shown = run_to_end(("sessions", "list", "--json"), {**os.environ, **variables}, entry=REAL)
    [session] = json.loads(shown.stdout)["sessions"]
    lines = (tmp_path / "sessions" / session["id"] / "session.jsonl").read_text().splitlines()
    nodes = [node for line in lines if (node := json.loads(line).get("node")) and node["role"] == "assistant"]
    assert [node["model_name"] for node in nodes] == ["thinking", "plain", "thinking"]
    assert nodes[0]["model"] == nodes[2]["model"] != nodes[1]["model"]
