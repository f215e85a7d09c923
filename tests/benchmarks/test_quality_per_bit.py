"""Windows, bars and tables of the comparison of quality per bit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import qwchat
from benchmarks.quality_per_bit import parse_text, usable
from benchmarks.rivals.contenders import OURS, Result
from benchmarks.rivals.measuring import Window, Yardstick, as_data, calibration_windows, text_windows
from benchmarks.rivals.quality_table import BARS, markdown, verdicts
from quant import convert
from qwchat.models_folder import embedded_checkpoint

CHATS = (("What can you do?", "I can chat about Qwen2."), ("Hello!", "Hi. What would you like to know?"))


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.api.Model]:
    """Return the built-in model, unquantised."""
    folder = tmp_path_factory.mktemp("quality") / "mini"
    for _ in convert(embedded_checkpoint(), folder, preset="dense", threads=1):
        pass
    with qwchat.load(folder, threads=1, context=512, kv="f32", verify=False) as model:
        yield model


def result(name: str, bits: float, **means: float) -> Result:
    """Return a row with these means for each kind of text."""
    figures = {
        kind: {"kl_mean": mean, "kl_interval": (mean / 2, mean * 2), "kl_99_9": 9 * mean, "same_top": 0.975,
               "perplexity_ratio": 1.01}
        for kind, mean in means.items()
    }  # fmt: skip
    return Result(name, name.startswith("q"), bits, 1.5, weights=figures, engine=figures if name[:2] == "q8" else {})


def test_a_bar_needs_every_kind_of_text_and_no_more_bits() -> None:
    rival = result("Q4_K_M + imatrix", 4.9, prose=1e-2, other=1e-2)

    def reached(bits: float, prose: float, other: float) -> bool:
        (verdict,) = verdicts([result("q4, calibrated", bits, prose=prose, other=other), rival], ["other"])
        return verdict.met

    assert reached(4.9, 4e-3, 7e-3)
    assert not reached(4.9, 4.1e-3, 4e-3)
    assert not reached(4.9, 4e-3, 7.1e-3)
    assert not reached(4.91, 1e-3, 1e-3)


def test_bars_compare_contenders_that_exist() -> None:
    ours = {each.name for each in OURS}
    assert {bar.ours for bar in BARS} <= ours
    assert "q8, 16-bit activations" in ours
    assert len(ours) == len(OURS)


def test_the_verdict_names_ratio_and_limit() -> None:
    rows = [result("q4", 4.8, prose=3e-3), result("Q4_K_M", 4.9, prose=4e-3)]
    (verdict,) = verdicts(rows, [])
    assert verdict.line() == "NOT MET: q4 / Q4_K_M, weights: prose 0.75 (≤ 0.70)"


def test_tables_list_every_contender() -> None:
    text = markdown([result("q4", 4.8, prose=3e-3), result("Q4_K_M", 4.9, prose=4e-3)], ["prose"])
    first, second = text.split("\n\n")
    assert first.splitlines() == [
        "| contender | bits | encode s | calibrate s | prose |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| **q4** | 4.800 | 1.5 | – | 3.00e-03 |",
        "| Q4_K_M | 4.900 | 1.5 | – | 4.00e-03 |",
    ]
    assert second.splitlines()[2] == "| **q4** | 3.00e-03 | 1.5e-03 to 6.0e-03 | 2.7e-02 | 97.5 % | 1.0100 | – | – |"


def test_a_model_is_no_distance_from_itself(mini: qwchat.api.Model) -> None:
    windows = [Window("a", mini.encode("What can you do? I can chat."), 3, 0), Window("b", mini.encode("Hello!"), 1, 1)]
    yardstick = Yardstick.of(mini, windows)
    assert yardstick.tokens() == {each.kind: len(each.ids) - each.first_scored for each in windows}

    def doubled(ids: list[int]) -> NDArray[np.float32]:
        return 2 * mini.logits(ids)

    same, other = as_data(yardstick.measure(mini.logits)), as_data(yardstick.measure(doubled))
    for kind in ("a", "b"):
        assert same[kind]["kl_mean"] == pytest.approx(0, abs=1e-6)
        assert other[kind]["kl_mean"] > 1e-3
        assert (same[kind]["same_top"], other[kind]["same_top"]) == (1, 1)


def test_windows_are_spread_over_a_text(mini: qwchat.api.Model, tmp_path: Path) -> None:
    file = tmp_path / "prose.txt"
    file.write_text("".join(f"Line {number} of a text.\n" for number in range(200)))
    ids = mini.encode(file.read_text())
    found = text_windows(mini, "prose", file, 128, 32)
    assert [len(each.ids) for each in found] == [32] * 4
    places = [next(at for at in range(0, len(ids), 32) if ids[at : at + 32] == each.ids) for each in found]
    assert places[0] == 0
    assert places[3] >= len(ids) // 2
    assert sum(map(len, calibration_windows(mini, [file, file], 128, 32))) == 128


def test_only_replies_of_conversations_count(mini: qwchat.api.Model, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    pairs = [[{"role": "user", "content": ask}, {"role": "assistant", "content": reply}] for ask, reply in CHATS]
    file.write_text("".join(json.dumps({"messages": each}) + "\n" for each in pairs))
    found = text_windows(mini, "chats", file, 200, 512)
    assert [mini.decode(each.ids[each.first_scored :]) for each in found] == [reply for _, reply in CHATS]
    assert [each.document for each in found] == [0, 1]
    assert len(text_windows(mini, "chats", file, 3, 512)) == 1


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    assert usable(tmp_path, Path("prose.txt"))
    assert not usable(tmp_path, Path("chats.jsonl"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not usable(tmp_path, Path("chats.jsonl"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert usable(tmp_path, Path("chats.jsonl"))


def test_a_text_has_a_name_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a=b.txt"
    file.write_text("x")
    assert parse_text(f"prose={file}") == ("prose", file)
    for wrong in (f"={file}", str(file.parent), "prose=missing.txt"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_text(wrong)
