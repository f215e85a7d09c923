"""Measurements that benchmarks append to JSON lines files and that `benchmarks.report` draws."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.engines import Engine
from quant.machine import usable_processors
from quant.native.simd_level import current_level
from quant.presets import PRESETS

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Conditions:
    """How a benchmark was run.

    Attributes:
        benchmark: name of the module in `benchmarks`.
        date: ISO 8601 date of the run.
        machine: processor and number of cores.
        simd: SIMD level of the kernels; None if the figures do not depend on it.
        threads: threads of the engines; None if the figures do not depend on them.
        command: command line; None if it was not recorded.
    """

    benchmark: str
    date: str
    machine: str
    simd: str | None
    threads: int | None
    command: str | None

    @classmethod
    def of_this_run(cls, benchmark: str, threads: int | None) -> Conditions:
        """Return the conditions of the running benchmark."""
        arguments = sys.argv[1:]
        if "--results" in arguments:  # Where the figures are written does not affect them.
            place = arguments.index("--results")
            del arguments[place : place + 2]
        command = shlex.join(["python", "-m", f"benchmarks.{benchmark}", *arguments])
        return cls(benchmark, date.today().isoformat(), machine_name(), current_level(), threads, command)


@dataclass(frozen=True)
class Limit:
    """Physical limit of a figure: its value in the unit of the figure, or the share of it that was reached."""

    name: str
    value: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One figure of one engine in one cell of a benchmark.

    Attributes:
        conditions: how the benchmark was run.
        model: name of the model or of its shape; None if no model takes part.
        engine: program that was measured.
        setting: weight format, and settings that differ between the records of a cell.
        cell: quantity, such as `prefill`, `decode` or `load`.
        size: tokens of the prompt or the context, where the cell has a length.
        figure: the median, unless `note` says otherwise.
        unit: unit of `figure`, `lowest` and `highest`.
        lowest: least of the rounds, where it was recorded.
        highest: greatest of the rounds, where it was recorded.
        limit: physical limit of the figure, where there is one.
        weights: class of weight formats that are compared with each other, such as `4 bits`.
        note: remark on how the figure was obtained.
    """

    conditions: Conditions
    model: str | None
    engine: Engine
    setting: str
    cell: str
    size: int | None
    figure: float
    unit: str
    lowest: float | None = None
    highest: float | None = None
    limit: Limit | None = None
    weights: str | None = None
    note: str | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Fields that identify the cell; a later run of the same benchmark has an equal key."""
        conditions = self.conditions
        cell = (self.model, self.engine, self.setting, self.cell, self.size, self.weights)
        return (conditions.benchmark, conditions.machine, conditions.simd, conditions.threads, *cell)

    @property
    def share(self) -> float | None:
        """Share of the limit that was reached."""
        if self.limit is None:
            return None
        return self.limit.share if self.limit.value is None else self.figure / self.limit.value

    @property
    def ceiling(self) -> float | None:
        """The limit in the unit of the figure."""
        if self.limit is None:
            return None
        return self.figure / self.limit.share if self.limit.share else self.limit.value

    def line(self) -> str:
        """Return the measurement as one line of JSON, without the newline."""
        fields = {key: value for key, value in asdict(self).items() if key != "conditions"}
        if self.limit is not None:
            fields["limit"] = {key: value for key, value in asdict(self.limit).items() if value is not None}
        return json.dumps({**asdict(self.conditions), **fields}, ensure_ascii=False)

    @classmethod
    def of_line(cls, line: str) -> Measurement:
        """Return the measurement of a line of JSON. Raises TypeError or KeyError for any other line."""
        fields: dict[str, Any] = json.loads(line)
        conditions = Conditions(**{name: fields.pop(name) for name in Conditions.__dataclass_fields__})
        limit = fields.pop("limit")
        return cls(conditions, **fields, limit=Limit(**limit) if limit else None)


class MissingError(LookupError):
    """There are no measurements with the requested values."""


@dataclass
class Results:
    """Measurements in the order of files and lines. Where two have the same key, the later one counts."""

    measurements: list[Measurement]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read every `*.jsonl` in `folder`."""
        lines = (line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines())
        return cls(list({each.key: each for each in map(Measurement.of_line, lines)}.values()))

    def select(self, benchmark: str, **wanted: object) -> list[Measurement]:
        """Return the measurements of a benchmark whose fields have the given values. Raises MissingError."""
        found = [
            each
            for each in self.measurements
            if each.conditions.benchmark == benchmark
            and all(getattr(each, name) == value for name, value in wanted.items())
        ]
        if not found:
            raise MissingError(f"no measurements of {benchmark} with {wanted}")
        return found


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """Add `--results FILE`, the file that `append` writes to."""
    parser.add_argument("--results", type=Path, metavar="FILE", help="append the figures to FILE as JSON lines")


def append(file: Path | None, measurements: Iterable[Measurement]) -> None:
    """Append one line per measurement to `file`, if there is one."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(f"{each.line()}\n" for each in measurements)


def model_and_preset(model: str | Path) -> tuple[str, str]:
    """Return model and preset of a folder name: `qwen2-0.5b-instruct` and `q4`, or "" if it names no preset."""
    name = Path(model).name
    preset = next((each for each in sorted(PRESETS, key=len, reverse=True) if name.endswith(f"-{each}")), "")
    return name.removesuffix(f"-{preset}") if preset else name, preset


def machine_name() -> str:
    """Return the number of usable cores and the name of the processor, such as `2 cores, AMD EPYC 9575F`."""
    try:
        fields = [line.partition(":") for line in CPU_INFO.read_text("utf-8").splitlines()]
    except OSError:
        fields = []
    names = [value.strip() for key, _, value in fields if key.strip() == "model name"]
    return f"{len(usable_processors())} cores, {names[0] if names else 'unknown processor'}"
