"""Measurements that benchmarks write, and those that are committed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks.kv_memory import cache_bytes, lengths
from benchmarks.measurements import (
    Conditions,
    Limit,
    Measurement,
    MissingError,
    Results,
    add_results_option,
    append,
    model_and_preset,
)
from quant.families import read_config

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
CONDITIONS = Conditions("startup", "2026-11-24", "2 cores, some machine", "avx2", 2, "python -m benchmarks.startup m")


def measured(figure: float, *, engine: str = "qwchat", limit: Limit | None = None) -> Measurement:
    return Measurement(CONDITIONS, "m", engine, "q4", "load", None, figure, "s", limit=limit)  # type: ignore[arg-type]


def test_a_record_survives_its_line() -> None:
    record = measured(0.5, limit=Limit("read bandwidth", share=0.8))
    assert Measurement.of_line(record.line()) == record
    assert "\n" not in record.line()
    values = json.loads(record.line())
    names = ("date", "machine", "simd", "command", "engine", "figure", "limit")
    assert [values[name] for name in names] == [
        "2026-11-24", "2 cores, some machine", "avx2", "python -m benchmarks.startup m", "qwchat", 0.5,
        {"name": "read bandwidth", "share": 0.8},
    ]  # fmt: skip


def test_a_limit_is_a_value_or_a_share() -> None:
    by_share, by_value = measured(40, limit=Limit("x", share=0.8)), measured(40, limit=Limit("x", value=50))
    assert (by_share.share, by_share.ceiling) == (0.8, 50)
    assert (by_value.share, by_value.ceiling) == (0.8, 50)
    assert (measured(40).share, measured(40).ceiling) == (None, None)


def test_lines_are_appended_and_the_last_of_a_cell_counts(tmp_path: Path) -> None:
    file = tmp_path / "results" / "startup.jsonl"
    append(file, [measured(1.0), measured(2.0, engine="llama.cpp")])
    append(file, [measured(3.0)])
    append(None, [measured(4.0)])
    assert len(file.read_text().splitlines()) == 3
    results = Results.read(file.parent)
    assert [each.figure for each in results.select("startup")] == [3.0, 2.0]
    assert [each.figure for each in results.select("startup", engine="llama.cpp")] == [2.0]
    with pytest.raises(MissingError):
        results.select("startup", cell="decode")


def test_a_folder_names_the_model_and_the_preset() -> None:
    assert model_and_preset("models/qwen2-0.5b-instruct-q4-small") == ("qwen2-0.5b-instruct", "q4-small")
    assert model_and_preset(Path("mini-q8")) == ("mini", "q8")
    assert model_and_preset("mini") == ("mini", "")


def test_the_command_leaves_out_where_the_figures_go(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_results_option(parser)
    assert parser.parse_args(["--results", "x.jsonl"]).results == Path("x.jsonl")
    monkeypatch.setattr(sys, "argv", ["benchmark", "a b", "--results", "x.jsonl", "--rounds", "3"])
    conditions = Conditions.of_this_run("startup", 2)
    assert conditions.command == "python -m benchmarks.startup 'a b' --rounds 3"
    assert conditions.machine.split(" ")[1].startswith("core")


def test_committed_records_are_as_they_would_be_written() -> None:
    files = sorted(RESULTS.glob("*.jsonl"))
    assert {"startup.jsonl", "vs_llama_cpp.jsonl", "kv_memory.jsonl"} <= {file.name for file in files}
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            record = Measurement.of_line(line)
            assert record.line() == line
            assert record.conditions.benchmark in (file.stem, "bench")


def test_committed_speeds_stand_in_the_log() -> None:
    log = (REPOSITORY / "docs" / "log.md").read_text("utf-8")
    speeds = [each for each in Results.read(RESULTS).measurements if each.unit == "tokens/s"]
    assert len(speeds) > 30
    assert [each for each in speeds if f"{each.figure:,.1f}" not in log and f"{each.figure:,.0f}" not in log] == []


def test_memory_of_the_cache() -> None:
    config = read_config(REPOSITORY / "models" / "mini")
    values = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 1024
    assert cache_bytes(config, "f32", 1024) == 4 * values
    assert cache_bytes(config, "q8", 1024) == values + values // 32 * 2
    below, above = lengths(config, ())
    assert cache_bytes(config, "f32", below) <= 128 * 2**20 < cache_bytes(config, "f32", above)
