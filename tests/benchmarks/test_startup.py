"""The start-up benchmark measures the time to the first text event."""

from __future__ import annotations

import os
import sys
import time

import pytest

from benchmarks.measurements import Conditions
from benchmarks.startup import as_text, measurements, prompt_tokens_in, time_to_text

PROGRAM = """
import json, time
time.sleep(0.3)
print(json.dumps({"event": "start"}), flush=True)
time.sleep(0.2)
print(json.dumps({"event": "text"}), flush=True)
time.sleep(0.4)
print(json.dumps({"event": "done", "tokens": {"prompt": 20}}), flush=True)
"""


@pytest.mark.slow
def test_the_first_text_counts() -> None:
    began = time.perf_counter()
    seconds, events = time_to_text([sys.executable, "-S", "-c", PROGRAM], os.environ)
    whole = time.perf_counter() - began
    assert [event["event"] for event in events] == ["start", "text", "done"]
    assert prompt_tokens_in(events) == 20
    assert 0.5 <= seconds <= whole - 0.4  # On any machine, since the program sleeps that long before and after.


def test_a_run_without_text_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nno model"):
        time_to_text([sys.executable, "-c", "import sys; sys.stderr.write('no model'); sys.exit(3)"], os.environ)


def test_records_of_the_rows_that_have_rounds() -> None:
    seconds = {"cold": [], "warm": [0.9, 0.7, 0.8], "llama.cpp": [1.25], "of that, llama.cpp": [1.0]}
    figures = {"model": "models/tiny-q4", "seconds": seconds, "prompt_tokens": 20, "threads": 2}
    warm, rival = measurements(figures, Conditions("startup", "2026-11-24", "some machine", "avx2", 2, None))
    assert (warm.model, warm.engine, warm.setting, warm.size) == ("tiny", "qwchat", "q4, warm", 20)
    assert (warm.figure, warm.lowest, warm.highest, warm.unit) == (0.8, 0.7, 0.9, "s")
    assert (rival.engine, rival.figure) == ("llama.cpp", 1.25)


def test_table() -> None:
    seconds = {"cold": [], "warm": [0.9, 0.7, 0.8], "llama.cpp": [1.25]}
    assert as_text({"seconds": seconds, "prompt_tokens": 20, "threads": 2}) == (
        "process start to first token, 20 tokens of prompt, 2 threads\n"
        "\n"
        "           median  lowest  highest  rounds\n"
        "warm       0.80 s    0.70     0.90       3\n"
        "llama.cpp  1.25 s    1.25     1.25       1"
    )
