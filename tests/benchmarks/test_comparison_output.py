"""Table, data and measurements of the comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.cells import Cell, Contender, ContenderResult, Setting
from benchmarks.comparison_output import as_data, as_text, measurements
from benchmarks.measurements import Conditions, Limit

OURS = Contender("qwchat", "q4", Setting("q8", "q8"))
THEIRS = Contender("llama.cpp", "Q4_0", Setting("f16", "f16", True, False, 512))
SLOW = Contender("llama.cpp", "Q4_0", Setting("f16", "f16", False, False, 512))

TABLE = """\
tiny, 4 bits, 2 threads; 20.0 GB/s read, 2,000 GOPS int8

                  qwchat   share  llama.cpp   share  ratio  qwchat with  llama.cpp with
prefill 512        500.0  50.0 %      125.0  12.5 %   4.00  q4, kv q8    Q4_0, repack, no flash, kv f16, ubatch 512
decode at 0         36.0  90.0 %       30.0  60.0 %   1.20  q4, kv q8    Q4_0, repack, no flash, kv f16, ubatch 512
decode at 16,384    20.0                  –              –  q4, kv q8    –

context of 4,096, full    load  anonymous  resident
q4, kv q8               0.10 s     200 MB    600 MB"""


@pytest.fixture
def data() -> dict[str, Any]:
    results = {
        Cell("prefill", 512): [
            ContenderResult(THEIRS, 120.0, [125.0]),
            ContenderResult(SLOW, 60.0, left_out="pruned"),
            ContenderResult(OURS, rates=[500.0]),
        ],
        Cell("decode", 0): [
            ContenderResult(THEIRS, 29.0, [29.0, 30.0, 31.0]),
            ContenderResult(OURS, rates=[36.0, 35.0, 40.0]),
        ],
        Cell("decode", 16384): [ContenderResult(OURS, rates=[20.0])],
    }
    probes = [{"read_bandwidth": bandwidth, "int8_peak": 2e12} for bandwidth in (19e9, 20e9, 40e9)]
    work = {
        "q4": {"bytes_per_token": 500_000_000, "operations_per_token": 2_000_000_000},
        "Q4_0": {"bytes_per_token": 400_000_000},
    }
    footprint = {"load_seconds": 0.1, "anonymous": 200_000_000, "resident": 600_000_000}
    memory = [{"contender": OURS.label, "engine": "qwchat", "context": 4096, **footprint}]
    return as_data(results, probes, work, memory)


def test_table(data: dict[str, Any]) -> None:
    assert as_text("tiny, 4 bits, 2 threads", data) == TABLE


WITH_IK = """\
tiny, 4 bits; 20.0 GB/s read, 2,000 GOPS int8

             qwchat   share  llama.cpp   share  ik_llama.cpp   share  ratio  qwchat with  llama.cpp with                              ik_llama.cpp with
prefill 512   500.0  50.0 %      125.0  12.5 %         250.0  25.0 %   2.00  q4, kv q8    Q4_0, repack, no flash, kv f16, ubatch 512  ik Q4_0, repack, no flash, kv f16, ubatch 512"""  # noqa: E501


def test_a_second_rival_gets_columns_and_the_ratio_is_to_the_better() -> None:
    results = {
        Cell("prefill", 512): [
            ContenderResult(OURS, rates=[500.0]),
            ContenderResult(THEIRS, rates=[125.0]),
            ContenderResult(replace(THEIRS, engine="ik_llama.cpp"), rates=[250.0]),
        ]
    }
    work = {"q4": {"bytes_per_token": 1, "operations_per_token": 2_000_000_000}, "Q4_0": {"bytes_per_token": 1}}
    data = as_data(results, [{"read_bandwidth": 20e9, "int8_peak": 2e12}], work, [])
    assert as_text("tiny, 4 bits", data) == WITH_IK
    assert [each["engine"] for each in data["cells"][0]["contenders"]] == ["qwchat", "llama.cpp", "ik_llama.cpp"]
    conditions = Conditions("vs_llama_cpp", "2026-11-24", "some machine", "avx2", 2, None)
    records = measurements("tiny", {"4 bits": data}, conditions, {"ik_llama.cpp": "built without AVX512"})
    assert [(each.engine, each.figure, each.note) for each in records] == [
        ("qwchat", 500.0, None),
        ("llama.cpp", 125.0, None),
        ("ik_llama.cpp", 250.0, "built without AVX512"),
    ]


def test_records(data: dict[str, Any]) -> None:
    conditions = Conditions("vs_llama_cpp", "2026-11-24", "some machine", "avx2", 2, None)
    records = measurements("tiny", {"4 bits": data}, conditions)
    assert [(each.engine, each.cell, each.size, each.figure, each.unit) for each in records] == [
        ("qwchat", "prefill", 512, 500.0, "tokens/s"),
        ("llama.cpp", "prefill", 512, 125.0, "tokens/s"),
        ("qwchat", "decode", 0, 36.0, "tokens/s"),
        ("llama.cpp", "decode", 0, 30.0, "tokens/s"),
        ("qwchat", "decode", 16384, 20.0, "tokens/s"),
        ("qwchat", "load", None, 0.1, "s"),
        ("qwchat", "anonymous memory", 4096, 200_000_000, "bytes"),
    ]
    assert records[0].limit == Limit("int8 peak", share=pytest.approx(0.5))
    assert records[2].limit == Limit("read bandwidth", share=pytest.approx(0.9))
    assert records[4].limit is None
    assert {(each.model, each.weights) for each in records} == {("tiny", "4 bits")}


def test_data_keeps_what_was_pruned(data: dict[str, Any]) -> None:
    prefill = data["cells"][0]
    assert prefill["ratio"] == 4
    assert [each["left_out"] for each in prefill["contenders"]] == ["", "pruned", ""]
    assert prefill["qwchat"]["share_of_int8_peak"] == pytest.approx(0.5)
    # At a depth, the cache is read as well, so there is no share.
    assert "share_of_read_bandwidth" not in data["cells"][2]["qwchat"]
