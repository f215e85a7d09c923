"""The arithmetic of the measurement of GPU code in a start."""

from __future__ import annotations

from benchmarks.gpu_startup import medians, module_times

TRACE = """import time: self [us] | cumulative | imported package
import time:       120 |        120 |   quant.units
import time:       900 |       4000 | qwchat.placement
import time:       200 |        200 |     qwchat.cuda
import time:       150 |        350 |   qwchat.cuda.library
import time:        70 |         70 | qwchat.cpu.build
import time:       330 |        990 | qwchat.cli.upload_status
"""


def test_modules_for_gpus_count_without_their_imports() -> None:
    assert module_times(TRACE) == {
        "qwchat.placement": 0.9,
        "qwchat.cuda": 0.2,
        "qwchat.cuda.library": 0.15,
        "qwchat.cli.upload_status": 0.33,
    }


def test_medians_are_those_of_each_name() -> None:
    assert medians([{"a": 1.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}
