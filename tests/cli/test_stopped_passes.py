"""Keys that stop the real engine during a forward pass: immediate, with exact figures, without loss."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quant.native.object_store import cache_root
from tests.chat.pty import Terminal
from tests.clocks import PATIENCE_SECONDS, wait_for
from tests.quant.checkpoints import make_checkpoint

PROGRAM = Path(__file__).with_name("endless_passes.py")
STOPPED = r"stopped after 0 of (\d+) prompt tokens · context 0/512"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a models folder with a small random model."""
    folder = tmp_path_factory.mktemp("stopped")
    shape = {"hidden_size": 128, "max_position_embeddings": 512}
    checkpoint = make_checkpoint(folder / "tiny", config_overrides=shape)
    program = "from qwchat.cli.main import main; main()"
    subprocess.run(
        [sys.executable, "-c", program, "-q", "-p", "hello", "-m", str(checkpoint), "--max-tokens", "1"],
        env={**os.environ, "QWCHAT_MODELS": str(folder / "models")},
        capture_output=True,
        check=True,
    )
    return folder / "models"


def variables(models: Path, started: Path) -> dict[str, str]:
    cache = str(cache_root())
    return {"QWCHAT_MODELS": str(models), "QWCHAT_CACHE": cache, "ENDLESS_STARTED": str(started)}


@pytest.mark.parametrize("key", ["\x1b", "\x03"], ids=["escape", "control c"])
@pytest.mark.slow
def test_a_key_stops_a_running_pass(models: Path, tmp_path: Path, key: str) -> None:
    started = tmp_path / "started"
    command = [sys.executable, str(PROGRAM), "chat", "-m", "tiny-q4"]
    with Terminal(models=tmp_path, command=command, variables=variables(models, started)) as terminal:
        terminal.prompt()
        terminal.type("hello\r")
        wait_for(started.exists, "the pass to begin")
        terminal.type(key)
        terminal.wait("stopped; no tokens generated", " prompt tokens · context 0/512")
        assert re.search(STOPPED, terminal.text)
        assert terminal.raw.index("stopping…".encode()) < terminal.raw.index(b"stopped after")
        assert "stopping" not in terminal.text
        assert "to first token" not in terminal.text
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.slow
def test_ctrl_c_stops_a_single_reply(models: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    command = [sys.executable, str(PROGRAM), "-m", "tiny-q4", "-p", "hello"]
    with Terminal(models=tmp_path, command=command, variables=variables(models, started)) as terminal:
        wait_for(started.exists, "the pass to begin")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert re.search(STOPPED, terminal.text)
        assert terminal.raw.index("stopping…".encode()) < terminal.raw.index(b"stopped after")


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
@pytest.mark.slow
def test_json_output_of_a_stopped_prefill(models: Path, tmp_path: Path, form: str) -> None:
    started = tmp_path / "started"
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "-m", "tiny-q4", "-p", "hello", form],
        env={**os.environ, **variables(models, started)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        wait_for(started.exists, "the pass to begin")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, err) == (130, b"")
    reply = json.loads(out.splitlines()[-1])
    assert reply["finish_reason"] == "cancelled"
    counts = reply["tokens"]
    assert counts["prompt"] > 0 == counts["read"] == counts["generated"] == counts["context_used"]
    assert reply["timings"]["time_to_first_token"] is None
    assert reply["timings"]["prefill_tokens_per_second"] == 0


def test_ctrl_c_raises_in_a_program_that_uses_the_api(models: Path, tmp_path: Path) -> None:
    program = """
import runpy, sys, unittest.mock
import qwchat
from qwchat.cpu import decoder
endless = runpy.run_path(sys.argv[1], run_name="endless")
patched = unittest.mock.patch.object(decoder, "load_entry_points", endless["endless_entry_points"])
with patched, qwchat.load("tiny-q4") as model:
    try:
        for event in model.chat([{"role": "user", "content": "hello"}]):
            print(event)
    except KeyboardInterrupt:
        print("interrupted", model.cached_context.length)
"""
    started = tmp_path / "started"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(PROGRAM)],
        env={**os.environ, **variables(models, started)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(started.exists, "the pass to begin")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE_SECONDS) == ("interrupted 0\n", "")
        assert process.returncode == 0
