"""Resuming the whole context of the embedded model evaluates no old tokens and gives the same text."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import resume
from models.recipe.recipe import MODEL
from quant import convert
from qwchat.models_folder import is_checkpoint


@pytest.mark.slow
@pytest.mark.skipif(not is_checkpoint(MODEL), reason="models/mini holds no weights yet: models/recipe trains them")
@pytest.mark.parametrize("kv", ["f32", "q8"])
def test_the_whole_context_of_the_embedded_model(tmp_path: Path, kv: str) -> None:
    model = tmp_path / "mini-q4"
    list(convert(MODEL, model))
    options = argparse.Namespace(
        model=model, tokens=0, rounds=1, warm=0, kv=kv, threads=len(os.sched_getaffinity(0)), work=tmp_path
    )
    figures = resume.measure(options)
    tokens = figures["written"]["tokens"]
    assert tokens == 2048 - resume.GENERATED
    [resumed], [again] = (figures["rounds"][way] for way in resume.WAYS)
    assert (resumed["cached"], again["cached"]) == (tokens - 1, 0)
    assert resumed["said"] == again["said"]
    # `qwchat -p … --session …`: all tokens before the new prompt come from the snapshot.
    assert resumed["command_cached"] > tokens - resume.OTHER_TOKENS
    assert again["command_cached"] == 0
    assert resumed["command_said"] == again["command_said"] != ""
    assert len(set(resumed["said"])) > 3
    assert resume.as_text(figures).endswith("greedy text: identical")


def runs(way: str, seconds: float, said: list[int]) -> dict[str, Any]:
    cached = 99 if way == "snapshot" else 0
    parts = {"opened": 0.3, "engine": seconds, "cpu": 2 * seconds, "restored": seconds / 2, "token": seconds / 2}
    command = {"command": 0.4 + seconds, "command_said": "Yes.", "command_cached": cached // 2}
    return {"process": 0.3 + seconds, **parts, "cached": cached, "said": said, **command}


def test_table() -> None:
    figures = {
        "kv": "f32",
        "threads": 2,
        "shares": {"checksums": 0.004},
        "written": {"tokens": 100, "bytes": 2_500_000, "seconds": 0.02},
        "rounds": {
            "snapshot": [runs("snapshot", seconds, [1, 2]) for seconds in (0.1, 0.02, 0.01)],
            "again": [runs("again", 0.2, [1, 2])],
        },
    }
    assert resume.as_text(figures) == (
        "100 tokens, kv f32, 2 threads: 2.5 MB, written in 20 ms\n"
        "ms to the first token     snapshot     again   ratio\n"
        "engine                        20.0     200.0   10.0%\n"
        "engine, CPU time              40.0     400.0   10.0%\n"
        "process                      320.0     500.0   64.0%\n"
        "command                      420.0     600.0   70.0%\n"
        "  start, imports, model      300.0       94%\n"
        "  restoring                   10.0        3%\n"
        "  first token                 10.0        3%\n"
        "  checksums: 4.0 ms on one thread\n"
        "tokens from the cache: 99 and 0\n"
        "tokens from the cache, command line: 49 and 0\n"
        "greedy text: identical"
    )
    assert resume.same_text(figures)
    figures["rounds"]["again"].append(runs("again", 0.2, [1, 3]))
    assert not resume.same_text(figures)
