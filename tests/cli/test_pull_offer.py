"""A model of the catalogue that is not here: a terminal is asked, everything else is told the command."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from qwchat.cli import confirmation, ensure_model, pull_offer
from qwchat.cli.streams import Streams
from qwchat.errors import ModelError
from tests.cli.fake_qwchat import dependencies


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what is pulled, on a terminal, with an empty models folder."""
    monkeypatch.setenv("QWCHAT_MODELS", str(tmp_path))
    found: list[str] = []

    def pull(name: str, preset: str, streams: Streams) -> None:
        found.append(f"{name} {preset}")
        (tmp_path / "qwen2.5-7b-q4").mkdir()
        (tmp_path / "qwen2.5-7b-q4/manifest.json").write_text("{}")

    monkeypatch.setattr(pull_offer, "pull_model", pull)
    return found


def on_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> tuple[Streams, io.StringIO]:
    """Return streams whose standard error is a terminal, where `answer` is typed."""
    streams, errors = Streams(), io.StringIO()
    monkeypatch.setattr(pull_offer, "stdin_is_terminal", lambda: True)
    monkeypatch.setattr(confirmation.sys, "stdin", io.StringIO(answer))
    monkeypatch.setattr(streams.screen, "stream", errors)
    monkeypatch.setattr(streams.screen, "styling", replace(streams.screen.styling, terminal=True))
    return streams, errors


def test_a_terminal_is_asked(pulled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streams, errors = on_terminal(monkeypatch, "y\n")
    located = ensure_model.ensure_model("qwen2.5:7b", dependencies(), streams)
    assert located.name == "qwen2.5-7b-q4"
    assert pulled == ["qwen2.5:7b q4"]
    assert errors.getvalue() == (
        "qwen2.5:7b is not on this machine. Download 15.2 GB (licence apache-2.0) and convert it? [y/N] "
    )


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_no_is_the_default(pulled: list[str], monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    streams, _ = on_terminal(monkeypatch, answer)
    with pytest.raises(ModelError, match=r"no model 'qwen2\.5:7b' here: pull it with qwchat pull qwen2\.5:7b"):
        ensure_model.ensure_model("qwen2.5:7b", dependencies(), streams)
    assert pulled == []


def test_without_a_terminal_nothing_is_asked(pulled: list[str]) -> None:
    with pytest.raises(ModelError, match=r"pull it with qwchat pull qwen2\.5:7b"):
        ensure_model.ensure_model("qwen2.5:7b", dependencies(), Streams())
    assert pulled == []


def test_other_names_are_not_offered(pulled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streams, errors = on_terminal(monkeypatch, "y\n")
    with pytest.raises(ModelError, match="there is no model 'llama:7b'"):
        ensure_model.ensure_model("llama:7b", dependencies(), streams)
    assert (pulled, errors.getvalue()) == ([], "")
