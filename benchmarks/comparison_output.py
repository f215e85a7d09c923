"""Output of the comparison: as JSON data, as a table, and as measurements."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from benchmarks.cells import Cell, ContenderResult, best, ratio
from benchmarks.engines import ENGINES, RIVALS
from benchmarks.measurements import Conditions, Limit, Measurement
from qwchat.chat.view.table import format_table

LIMITS = {"share_of_int8_peak": "int8 peak", "share_of_read_bandwidth": "read bandwidth"}


def shares(
    cell: Cell, result: ContenderResult, work: Mapping[str, Mapping[str, int]], limits: Mapping[str, float]
) -> dict[str, float]:
    """Return the share of the int8 peak (prefill) or of the read bandwidth (decode at depth 0).

    At any other depth the KV cache is read as well, and no share is given.
    """
    rate = result.rate or 0.0
    if cell.kind == "prefill":
        operations = next(each["operations_per_token"] for each in work.values() if "operations_per_token" in each)
        return {"share_of_int8_peak": rate * operations / limits["int8_peak"]}
    if cell.size:
        return {}
    return {
        "share_of_read_bandwidth": rate * work[result.contender.format]["bytes_per_token"] / limits["read_bandwidth"]
    }


def as_data(
    results: Mapping[Cell, Sequence[ContenderResult]],
    probes: Sequence[Mapping[str, float]],
    work: Mapping[str, Mapping[str, int]],
    memory: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return all figures as data for JSON; limits are the medians of the probes."""
    limits = {name: statistics.median(probe[name] for probe in probes) for name in probes[0]}
    cells = []
    for cell, contenders in results.items():
        entry: dict[str, Any] = {**asdict(cell), "name": cell.name, "ratio": ratio(contenders)}
        for engine in ENGINES:
            winner = best(contenders, engine)
            if winner is not None:
                entry[engine] = {
                    "contender": winner.contender.label,
                    "tokens_per_second": winner.rate,
                    **shares(cell, winner, work, limits),
                }
        entry["contenders"] = [
            {
                "engine": each.contender.engine,
                "contender": each.contender.label,
                "survey": each.survey,
                "rounds": each.rates,
                "others": each.others,
                "left_out": each.left_out,
            }
            for each in contenders
        ]
        cells.append(entry)
    return {"limits": limits, "probes": list(probes), "work": dict(work), "cells": cells, "memory": list(memory)}


def as_text(title: str, data: Mapping[str, Any]) -> str:
    """Return the tables of one class: speeds by cell, with the ratio to the best rival, then load time and memory."""
    limits = data["limits"]
    head = f"{title}; {limits['read_bandwidth'] / 1e9:.1f} GB/s read, {limits['int8_peak'] / 1e9:,.0f} GOPS int8"
    present = {each["engine"] for cell in data["cells"] for each in cell["contenders"]}
    engines = ["qwchat", *(engine for engine in RIVALS if engine in present or engine == "llama.cpp")]
    rows = []
    for cell in data["cells"]:
        sides = [cell.get(engine) for engine in engines]
        rows.append(
            (
                cell["name"],
                *(column for side in sides for column in _side(side)),
                f"{cell['ratio']:.2f}" if cell["ratio"] else "–",
                *(side["contender"] if side else "–" for side in sides),
            )
        )
    speeds = [head for engine in engines for head in (engine, "share")]
    heads = ("", *speeds, "ratio", *(f"{engine} with" for engine in engines))
    memory = [
        (
            each["contender"],
            f"{each['load_seconds']:.2f} s",
            f"{each['anonymous'] / 1e6:,.0f} MB",
            f"{each['resident'] / 1e6:,.0f} MB",
        )
        for each in data["memory"]
    ]
    parts = [head, format_table(heads, rows, right=range(1, len(speeds) + 2))]
    if memory:
        parts.append(format_table(("context of 4,096, full", "load", "anonymous", "resident"), memory, right=(1, 2, 3)))
    return "\n\n".join(parts)


def measurements(
    shape: str, classes: Mapping[str, Any], conditions: Conditions, notes: Mapping[str, str] = MappingProxyType({})
) -> list[Measurement]:
    """Return the measurements of a shape: speeds of all engines in every cell, load time and memory.

    Args:
        shape: name of the shape.
        classes: data of `as_data` by class of formats.
        conditions: how the benchmark was run.
        notes: remarks on the build of an engine, by engine.
    """
    records = []
    for weights, data in classes.items():
        for cell in data["cells"]:
            for engine in ENGINES:
                if engine not in cell:
                    continue
                winner = cell[engine]
                limit = next((Limit(name, share=winner[key]) for key, name in LIMITS.items() if key in winner), None)
                records.append(
                    Measurement(
                        conditions, shape, engine, winner["contender"], cell["kind"], cell["size"],
                        winner["tokens_per_second"], "tokens/s", limit=limit, weights=weights, note=notes.get(engine),
                    )
                )  # fmt: skip
        for each in data["memory"]:
            for cell, size, figure, unit in (
                ("load", None, each["load_seconds"], "s"),
                ("anonymous memory", each["context"], each["anonymous"], "bytes"),
            ):
                records.append(
                    Measurement(
                        conditions,
                        shape,
                        each["engine"],
                        each["contender"],
                        cell,
                        size,
                        figure,
                        unit,
                        weights=weights,
                        note=notes.get(each["engine"]),
                    )
                )
    return records


def _side(side: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the table columns of one engine: tokens per second, and the share of the limit."""
    if side is None:
        return "–", ""
    share = side.get("share_of_int8_peak", side.get("share_of_read_bandwidth"))
    return f"{side['tokens_per_second']:,.1f}", "" if share is None else f"{100 * share:.1f} %"
