"""Costs of programs, and the comparison of both steps of llama.cpp with one of ours."""

from __future__ import annotations

import sys

import pytest

from benchmarks.conversion_speed import LAST_CHARACTERS, Cost, compare, cost_of, table


def test_the_cost_of_a_process_counts_its_processor_time_and_memory() -> None:
    busy = "total = sum(range(3_000_000)); held = bytearray(200_000_000)"
    cost = cost_of([sys.executable, "-c", busy])
    assert cost.peak > 200_000_000
    assert cost.processor > 0


def test_a_program_that_fails_is_named_with_the_end_of_its_errors() -> None:
    with pytest.raises(SystemExit) as error:
        cost_of([sys.executable, "-c", f"raise SystemExit('x' * {3 * LAST_CHARACTERS} + 'the reason')"])
    text = str(error.value)
    assert text.startswith(f"{sys.executable} -c")
    assert text.endswith("xthe reason\n")
    assert text.count("x") < 2 * LAST_CHARACTERS


def test_both_steps_of_llama_cpp_count() -> None:
    found = {
        "q4": [Cost(3, 5, 10), Cost(2, 6, 11), Cost(50, 7, 12)],
        "bf16": [Cost(4, 2, 9), Cost(4, 2, 9), Cost(4, 2, 9)],
        "Q4_K_M": [Cost(6, 10, 20), Cost(4, 10, 20), Cost(90, 10, 20)],
    }
    row = compare(found, "q4")
    assert (row["ours"], row["theirs"]) == ({"wall": 3, "processor": 6}, {"wall": 10, "processor": 12})
    assert row["ratio"] == {"wall": 0.3, "processor": 0.5}
    assert row["met"]
    assert not compare({**found, "q4": [Cost(3.6, 5, 10)] * 3}, "q4")["met"]
    assert table([{"shape": "0.5b", **row}]).splitlines()[-1].split() == (
        ["0.5b", "q4", "3.0", "Q4_K_M", "10.0", "0.30", "≤", "0.35", "6.0", "12.0", "0.50"]
    )


def test_costs_add_up_except_memory() -> None:
    assert Cost(1, 2, 30) + Cost(3, 4, 20) == Cost(4, 6, 30)
