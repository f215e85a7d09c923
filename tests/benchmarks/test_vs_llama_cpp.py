"""Order of work of the comparison, with fake engines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cells import MOST_RIVALS, Cell, Contender, ContenderResult, Setting, best, rival_contenders
from benchmarks.engines import RIVALS
from benchmarks.processes import EngineError, Pool, Process, busy_seconds
from benchmarks.vs_llama_cpp import Comparison, parse_cells, rival_formats
from tests.clocks import wait_for

OURS = [Contender("qwchat", "q4", Setting(kv, kv)) for kv in ("f32", "q8")]
FILES = {name: Path(name) for name in ("q4", "Q4_0")}


class FakeProcess(Process):
    """Process that answers at once; every token has a fixed cost, and an f32 cache is refused."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012 - one log for all of them

    def __init__(self, contender: Contender) -> None:
        self._engine, self._repack = contender.engine, contender.setting.repack

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append((op, arguments.get("key", "")))
        if op == "open" and arguments["setting"]["keys"] == "f32":
            raise EngineError("no such cache")
        if op == "probe":
            return {"read_bandwidth": 1e10, "int8_peak": 1e12}
        cost = 0.01 if self._engine == "qwchat" else 0.02 if self._repack else 0.04
        return {"seconds": cost * arguments.get("tokens", arguments.get("count", 0)), "copied": True}

    def cpu_seconds(self) -> float:
        return 0.0

    def memory(self) -> dict[str, int]:
        return {"anonymous": 1, "resident": 2}

    def end(self) -> None:
        self.asked.append(("end", ""))


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Comparison:
    FakeProcess.asked = []
    monkeypatch.setattr("benchmarks.vs_llama_cpp.busy_seconds", lambda: 0.0)
    monkeypatch.setattr(Comparison, "start", lambda self, contender: FakeProcess(contender))
    return Comparison(FILES, argparse.Namespace(threads=2, new_tokens=4, rounds=3, minutes=1))


def run(comparison: Comparison, cells: list[Cell]) -> None:
    comparison.survey(list(rival_contenders("llama.cpp", ("Q4_0",))), cells)
    comparison.measure(OURS, cells)


def rounds_of(results: list[ContenderResult]) -> dict[str, int]:
    return {result.contender.label: len(result.rates) for result in results if result.rates}


def test_survey_then_rounds(comparison: Comparison) -> None:
    cells = [Cell("prefill", 8), Cell("prefill", 16), Cell("decode", 0)]
    run(comparison, cells)
    for cell in cells:
        results = comparison.results[cell]
        assert len(results) == 8 + 2
        assert set(rounds_of(results).values()) == {3}
        winner = best(results, "llama.cpp")
        assert winner is not None
        assert winner.contender.setting.repack
        assert winner.rate == pytest.approx(50)
    slow = next(each for each in comparison.results[cells[1]] if not each.contender.setting.repack)
    assert slow.left_out.startswith("pruned: 25.0 of 50.0")
    assert slow.survey is None
    assert len(comparison.probes) == 3 * len(cells)


def test_engines_take_turns_in_both_orders(comparison: Comparison) -> None:
    run(comparison, [Cell("decode", 0)])
    first_of_round = [key for op, key in FakeProcess.asked if op == "decode"][8:]
    assert len(first_of_round) == 3 * 4
    assert first_of_round[4:8] == first_of_round[:4][::-1]
    assert first_of_round[8:] == first_of_round[:4]


def test_refusals_are_recorded(comparison: Comparison) -> None:
    run(comparison, [Cell("decode", 0)])
    refused = [result for result in comparison.results[Cell("decode", 0)] if result.contender == OURS[0]]
    assert [result.left_out for result in refused] == ["refused: no such cache"]
    assert refused[0].rates == []


def test_a_disturbed_measurement_is_repeated(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.0, 5.0, 5.0, 6.0, 6.0, 6.0])
    monkeypatch.setattr("benchmarks.vs_llama_cpp.busy_seconds", lambda: next(busy))
    monkeypatch.setattr("benchmarks.vs_llama_cpp.PAUSE_SECONDS", 0.0)
    rate, others = comparison.timed(OURS[1], Cell("prefill", 8), 4, 1)
    assert (rate, others) == (pytest.approx(100), 0.0)
    assert next(busy, None) is None


def test_out_of_time(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Cell("decode", 0), Cell("decode", 8)]
    settings = list(rival_contenders("llama.cpp", ("Q4_0",)))
    comparison.survey(settings[:2], cells)
    monkeypatch.setattr(comparison, "spent", lambda: 0.6)
    comparison.survey(settings[2:3], cells)
    monkeypatch.setattr(comparison, "spent", lambda: 1.1)
    comparison.measure(OURS, cells)
    # A cell that has begun gets one round, so that its contenders can be compared.
    assert set(rounds_of(comparison.results[cells[0]]).values()) == {1}
    assert rounds_of(comparison.results[cells[1]]) == {}
    assert [bool(result.survey) for result in comparison.results[cells[1]]] == [True, True, False]
    assert comparison.results[cells[1]][2].left_out == "out of time for the survey"


def test_footprints_of_the_fastest(comparison: Comparison) -> None:
    cells = [Cell("prefill", 8), Cell("decode", 0)]
    run(comparison, cells)
    found = comparison.footprints(cells)
    assert [each["contender"].split(",")[0] for each in found] == ["Q4_0", "q4"]
    assert found[1]["contender"] == "q4, kv q8"
    assert found[1]["anonymous"] == 1


def test_both_rivals_are_surveyed_and_measured(comparison: Comparison) -> None:
    cell = Cell("decode", 0)
    settings = [each for engine in RIVALS for each in rival_contenders(engine, ("Q4_0",))]
    comparison.survey(settings, [cell])
    comparison.measure(OURS, [cell])
    results = comparison.results[cell]
    for engine in RIVALS:
        assert sum(1 for each in results if each.contender.engine == engine and each.rates) == MOST_RIVALS
        winner = best(results, engine)
        assert winner is not None
        assert winner.contender.setting.repack
    # The file that both read is measured with each of them.
    names = [each["contender"].split(",")[0] for each in comparison.footprints([cell])]
    assert names == ["Q4_0", "ik Q4_0", "q4"]


def test_every_engine_runs_in_its_own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("benchmarks.processes.subprocess.Popen", lambda command, **_: commands.append(command))
    comparison = Comparison(FILES, argparse.Namespace(threads=2, ik_python=Path("/other/python")))
    for engine in RIVALS:
        comparison.start(next(rival_contenders(engine, ("Q4_0",))))
    ends = ["-m", "benchmarks.worker", "{}", "Q4_0", "--threads", "2", "--repack"]
    assert commands == [
        [python, *(part.format(engine) for part in ends)]
        for python, engine in zip((sys.executable, "/other/python"), RIVALS, strict=True)
    ]


def shape_options(tmp_path: Path, hidden_size: int, ik_python: Path | None) -> argparse.Namespace:
    shapes = {"shape": {"hidden_size": hidden_size, "intermediate_size": 4864}}
    (tmp_path / "shapes.json").write_text(json.dumps(shapes))
    return argparse.Namespace(published=tmp_path, ik_python=ik_python)


def test_formats_of_the_rivals(tmp_path: Path) -> None:
    four, eight = ("Q4_0", "Q4_K_M"), ("Q8_0",)
    alone = shape_options(tmp_path, 1536, None)
    assert rival_formats("4 bits", "shape", alone) == {"llama.cpp": four}
    both = shape_options(tmp_path, 1536, Path("python"))
    assert rival_formats("4 bits", "shape", both) == {"llama.cpp": four, "ik_llama.cpp": (*four, "IQ4_KS")}
    assert rival_formats("8 bits", "shape", both) == {"llama.cpp": eight, "ik_llama.cpp": eight}
    # Rows of 896 are not made of blocks of 256.
    narrow = shape_options(tmp_path, 896, Path("python"))
    assert rival_formats("4 bits", "shape", narrow)["ik_llama.cpp"] == four


def test_a_process_that_ended_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[FakeProcess] = []

    def start(contender: Contender) -> Process:
        started.append(FakeProcess(contender))
        return started[-1]

    pool = Pool(start)
    first = pool.process_of(OURS[0])

    def refuse(op: str, **arguments: object) -> dict[str, Any]:
        raise EngineError(f"{op}: the process has ended")

    monkeypatch.setattr(first, "ask", refuse)
    pool.keep(OURS)
    assert pool.process_of(OURS[0]) is not first
    assert len(started) == 2


def test_cells_of_the_command_line() -> None:
    cells = parse_cells(["decode:4096,0", "prefill:128"])
    assert cells == [Cell("decode", 0), Cell("decode", 4096), Cell("prefill", 128)]
    with pytest.raises(argparse.ArgumentTypeError, match="expected prefill:128,512"):
        parse_cells(["prefil:1"])


def test_busy_seconds_grow_with_work() -> None:
    before = busy_seconds()
    wait_for(lambda: busy_seconds() - before >= 0.05, "the machine's clock to move", pause=0)
