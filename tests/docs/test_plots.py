"""The committed plots are those that the committed results draw."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.measurements import Measurement, Results

pytest.importorskip("matplotlib", reason="matplotlib draws the plots; the extras bench and docs install it")

from benchmarks.plots import PLOTS, draw

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "docs" / "plots"
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return draw(Results.read(REPOSITORY / "benchmarks" / "results"))


def content(svg: str) -> list[tuple[str, dict[str, str], str]]:
    """Return the elements in order, with coordinates rounded to points, since font metrics differ between builds."""
    return [
        (
            element.tag,
            {name: NUMBER.sub(lambda number: str(round(float(number[0]))), value) for name, value in element.items()},
            (element.text or "").strip(),
        )
        for element in ElementTree.fromstring(svg).iter()
    ]


def test_every_plot_is_committed(drawn: dict[str, str]) -> None:
    assert set(drawn) == set(PLOTS) == {file.stem for file in COMMITTED.glob("*.svg")}


@pytest.mark.parametrize("name", PLOTS)
def test_committed_plots_are_current(name: str, drawn: dict[str, str]) -> None:
    committed = (COMMITTED / f"{name}.svg").read_text("utf-8")
    assert content(committed) == content(drawn[name]), f"{name}.svg is out of date: run python -m benchmarks.report"


def test_drawing_again_gives_the_same_bytes(drawn: dict[str, str]) -> None:
    assert draw(Results.read(REPOSITORY / "benchmarks" / "results")) == drawn


@pytest.mark.parametrize("name", PLOTS)
def test_plots_load_nothing_and_tell_no_time(name: str, drawn: dict[str, str]) -> None:
    svg = drawn[name]
    assert not re.search(r"""(?:href|src)=["'](?!#)|url\((?!#)|@import|@font-face|<!DOCTYPE|dc:date""", svg)
    assert "prefers-color-scheme:dark" in svg


def test_a_plot_without_measurements_is_left_out() -> None:
    assert draw(Results([])) == {}


def test_a_second_rival_has_bars_and_a_curve_of_its_own() -> None:
    committed = Results.read(REPOSITORY / "benchmarks" / "results")
    forks = [replace(each, engine="ik_llama.cpp") for each in committed.measurements if each.engine == "llama.cpp"]
    texts = {name: re.findall(r">([^<>]+)</text>", svg) for name, svg in draw(Results(order(committed, forks))).items()}
    for name in ("prefill", "decode", "decode-depth"):
        assert texts[name].count("ik_llama.cpp") == texts[name].count("llama.cpp") == 1, name
    for name in ("memory", "startup"):
        assert "ik_llama.cpp" not in texts[name]


def order(committed: Results, forks: list[Measurement]) -> list[Measurement]:
    """Return measurements with those of a fork beside those of the same model and weights."""
    found = [*committed.measurements, *forks]
    models = list(dict.fromkeys((each.model, each.weights) for each in found))
    return sorted(found, key=lambda each: models.index((each.model, each.weights)))
