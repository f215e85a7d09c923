"""A pull on a terminal: one row of progress, Ctrl-C, and the command again."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quant.native.object_store import cache_root
from tests.chat.pty import Terminal
from tests.quant.checkpoints import make_checkpoint
from tests.store.hub_server import HubState, serving
from tests.store.pulls import ENTRY, SHAPE, Hub

BAR = re.compile(r"pulling Tiny-q4 [━╸╺ ]+ +[1-9]\d?% [\d.]+/[\d.]+ MB (?:[\d.]+ [kM]?B/s|\?) (?:\d:\d\d:\d\d|-:--:--)")
NARROW = re.compile(r"pulling Ti\S* +[1-9]\d?% [\d.]+/[\d.]+ MB (?:[\d.]+ [kM]?B/s|\?) (?:\d:\d\d:\d\d|-:--:--)")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    source = make_checkpoint(tmp_path / "Tiny", shards=3, config_overrides=SHAPE)
    state = HubState({"Qwen/Tiny": source})
    with serving(state) as url:
        yield Hub(state, url, source, tmp_path)


def on_terminal(hub: Hub, columns: int) -> Terminal:
    everything = hub.environment({})
    variables = {name: everything[name] for name in ("HF_ENDPOINT", "HF_HOME", "QWCHAT_MODELS")}
    variables["QWCHAT_CACHE"] = str(cache_root())  # The compiled code of all tests.
    return Terminal(
        "pull", "Qwen/Tiny", models=hub.work / "terminal", entry=ENTRY, columns=columns, variables=variables
    )


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "bar"), [(100, BAR), (52, NARROW)], ids=["wide", "narrow"])
def test_progress_is_one_row_and_ctrl_c_keeps_what_is_there(hub: Hub, columns: int, bar: re.Pattern[str]) -> None:
    let_go = threading.Event()
    half = sum(file.stat().st_size for file in hub.source.glob("*.safetensors")) // 2
    hub.state.on_chunk = lambda: hub.state.sent.total() < half or let_go.wait()
    with on_terminal(hub, columns) as terminal:
        terminal.wait_until(lambda: any(map(bar.fullmatch, terminal.text.splitlines())), "the bar")
        assert terminal.text.splitlines()[0] == "looking up Qwen/Tiny"
        assert len(terminal.text.splitlines()) == 2
        terminal.type("\x03")
        assert terminal.end() == 130
        # The bar is gone, and what remains says what to do.
        kept = "what is done is kept: the same command resumes it qwchat: interrupted"
        assert " ".join(terminal.text.splitlines()) == f"looking up Qwen/Tiny {kept}"
    let_go.set()
    before = hub.state.sent.total()
    assert before > 0
    with on_terminal(hub, columns) as terminal:
        assert terminal.end() == 0
        text = " ".join(terminal.text.split())
        assert "pulled Qwen/Tiny@0123456789ab, licence apache-2.0: " in text
        assert "talk to it: qwchat -m Tiny-q4" in text
    assert (hub.models / "Tiny-q4/manifest.json").is_file()
