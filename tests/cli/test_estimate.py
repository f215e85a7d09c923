"""`qwchat estimate`: its tables on terminals of several widths, in a pipe, as JSON, and its errors."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wcwidth import wcswidth

from quant.units import data_size
from qwchat.chat.view.tail import TerminalSize
from qwchat.cli.app import run_app
from qwchat.store.cards import Card
from tests.chat.pty import without_styles
from tests.cli.fake_qwchat import dependencies
from tests.cli.runs import call
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run as convert

CPU = """\
On the CPU with 16.0 GB of memory, 30.0 GB/s:

preset  context  KV   weights  KV cache  work space   total  fits  tok/s
q4        1,024  f32   4.4 GB    117 MB     30.5 MB  4.7 GB  yes     7.3
q4       32,768  q8    4.4 GB    998 MB     54.7 MB  5.6 GB  yes     6.0
"""
CARD = """\
On RTX 3050 6GB with 6.3 GB of memory, 168 GB/s, about 419 MB for its driver:

preset  context  KV   weights  KV cache  work space   total    layers  tok/s
q4        1,024  f16   4.7 GB   58.7 MB      {} MB  {}       all   39.6
q4       32,768  q8    4.7 GB    998 MB      {} MB  {}  27 of 28   27.4
"""
"""The work space is that of `qwchat.model.gpu_memory`, with its total."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one of 16 GB and two threads."""
    monkeypatch.setattr("qwchat.cpu.memory.total_memory", lambda: 16_000_000_000)
    monkeypatch.setattr("qwchat.cpu.kernels.thread_counts.default_threads", lambda: 2)


def output(models: Path, *arguments: str) -> str:
    result = call("estimate", *arguments, models=models)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode()


def test_tables_in_a_pipe(tmp_path: Path) -> None:
    arguments = ("qwen2.5:7b", "--preset", "q4", "--ctx", "1024", "--ctx", "32768", "--gpu", "3050")
    gpu = [each["gpu"] for each in json.loads(output(tmp_path, *arguments, "--json"))["estimates"]]
    figures = [text for each in gpu for text in (f"{each['work_space'] / 1e6:.0f}", data_size(each["total"]))]
    assert output(tmp_path, *arguments) == CPU + "\n" + CARD.format(*figures)


def test_common_cards(tmp_path: Path) -> None:
    text = output(tmp_path, "qwen2.5:14b", "--ctx", "4096")
    cpu, gpu, cards = (part.split("\n\n")[1] for part in text.split("On ")[1:])
    assert len(cpu.splitlines()) == len(gpu.splitlines()) == 8
    lines = {line.split("  ")[0]: line.split() for line in cards.splitlines()}
    assert lines["RTX 4090"][-2] == lines["RTX 3060"][-2] == "all"
    assert lines["RTX 3060 Ti"][-4:-1] == ["44", "of", "48"]
    fits = {line.split()[0]: line.split("GB")[-1].split() for line in cpu.splitlines()[1:]}
    assert [words[0] for words in (fits["q4"], fits["q8"], fits["dense"])] == ["yes", "tight", "no"]
    # The speed of a model that does not fit is that of the disk.
    assert [len(words) for words in (fits["q4"], fits["q8"], fits["dense"])] == [2, 2, 1]


def test_the_card_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card("NVIDIA GeForce RTX 4060", 8_220_000_000, 272e9)
    lines = on_terminal(monkeypatch, 100, "estimate", "qwen2.5:14b", "--ctx", "4096", card=card)
    title = next(number for number, line in enumerate(lines) if "RTX 4060" in line)
    assert lines[title] == ("On NVIDIA GeForce RTX 4060 with 8.2 GB of memory, 272 GB/s, about 419 MB for its driver:")
    q4, *_, dense = lines[title + 4 : title + 11]
    assert q4.split()[-4:-1] == ["43", "of", "48"]
    assert dense.split()[-4:-1] == ["10", "of", "48"]
    assert any(line.startswith("RTX 4090") for line in lines)  # Common cards follow.
    (line,) = on_terminal(monkeypatch, 100, "estimate", "qwen2.5:14b", "--ctx", "4096", "--json", card=card)
    data = json.loads(line)
    assert data["machine_card"] == {"name": card.name, "memory": card.memory, "bandwidth": card.bandwidth}
    assert [each["gpu"]["cards"][0]["name"] for each in data["estimates"]] == [card.name] * 7


def test_json(tmp_path: Path) -> None:
    data = json.loads(output(tmp_path, "qwen2.5:7b", "--preset", "q4", "--ctx", "4096", "--json"))
    (estimate,) = data["estimates"]
    assert (data["machine_memory"], data["machine_bandwidth"]) == (16_000_000_000, 30e9)
    assert estimate["fits"] == "yes"
    assert estimate["tokens_per_second"] == pytest.approx(30e9 / estimate["bytes_per_token"], abs=0.01)
    gpu = estimate["gpu"]
    assert gpu["total"] == gpu["weights"] + gpu["cache"] + gpu["work_space"] + (400 << 20)
    cards = {card["name"]: card for card in gpu["cards"]}
    assert cards["RTX 4090"]["layers"] == cards["RTX 4090"]["of_layers"] == 28
    assert cards["RTX 4090"]["tokens_per_second"] == pytest.approx(1008e9 / gpu["bytes_per_token"], abs=0.01)
    one = json.loads(output(tmp_path, "qwen2.5:7b", "--preset", "q4", "--ctx", "4096", "--json", "--gpu", "T4"))
    assert one["estimates"][0]["gpu"]["cards"] == [cards["T4"]]


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_narrow_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    lines = on_terminal(monkeypatch, columns, "estimate", "qwen2.5:14b", "--preset", "q4-small")
    assert max(map(wcswidth, lines)) <= columns
    heads = [line.split() for line in lines if line.startswith("preset")]
    assert heads[0][-2:] == ["fits", "tok/s"]
    assert "total" in heads[0]
    assert "total" in heads[1]
    assert any(line.startswith("RTX 4090") for line in lines)


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: str, card: Card | None = None) -> list[str]:
    """Return the lines of a command's output on a terminal, on a machine with a card."""

    class Stream(io.StringIO):
        encoding: Any = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("qwchat.cli.tables.terminal_size", lambda stream: TerminalSize(columns, 24))
    stream = Stream()
    monkeypatch.setattr("sys.stdout", stream)
    assert run_app(list(arguments), replace(dependencies(), card=lambda: card)) == 0
    return without_styles(stream.getvalue().encode()).decode().splitlines()


def test_what_can_be_estimated(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    convert(source, tmp_path / "model", preset="q8")
    names = {"qwen2.5:0.5b": None, str(source): None, str(source / "config.json"): None, str(tmp_path / "model"): "q8"}
    for name, preset in names.items():
        data = json.loads(output(tmp_path / "models", name, "--json", "--ctx", "256"))
        presets = [row["preset"] for row in data["estimates"]]
        assert presets == [preset] if preset else len(presets) > 3
        for row in data["estimates"]:
            assert row["total"] > row["weights"] + row["cache"] + row["work_space"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ctx", "40000"), "--ctx must be from 1 to 32,768 for qwen2.5:7b, not 40000"),
        (("--ctx", "x"), "--ctx must be from 1 to 32,768"),
        (("--gpu", "A100"), "'A100' is not in the table of cards: did you mean A100 40GB, A100 80GB?"),
        (("--preset", "q5"), "unknown preset 'q5'"),
    ],
)
def test_errors(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = call("estimate", "qwen2.5:7b", *arguments, models=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr.decode()


def test_unknown_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwchat.cpu.memory.total_memory", lambda: None)
    text = output(tmp_path, "qwen2.5:7b", "--preset", "q4")
    assert text.startswith("On the CPU with 30.0 GB/s:\n")
