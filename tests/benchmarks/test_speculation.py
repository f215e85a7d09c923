"""Parts of the benchmark of speculation that need no clock."""

from __future__ import annotations

import random
from pathlib import Path

import qwchat
from benchmarks.measurements import Conditions
from benchmarks.speculation import Decoded, Task, edits, forced_tasks, measure, measurements, together
from quant import convert
from tests.quant.checkpoints import make_checkpoint


def test_forced_copying_generates_the_text_either_way(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "tiny", config_overrides={"hidden_size": 128})
    list(convert(tmp_path / "tiny", tmp_path / "tiny-q4"))
    with qwchat.load(tmp_path / "tiny-q4", threads=1, context=128) as model:
        copying, *_, nothing = forced_tasks(model, seed=9, depth=64, length=16)
        row = measure(copying, 1)
        assert (row["different"], row["tokens"]) == (0, 16)
        assert nothing.cases[0](False).tokens == nothing.cases[0](True).tokens != copying.cases[0](False).tokens
    conditions = Conditions("speculation", "2026-11-28", "some machine", "avx2", 1, None)
    plain, speculative = measurements("tiny-q4", [row], conditions)
    assert (plain.model, plain.setting, plain.figure) == ("tiny", "q4, no speculation", row["plain"])
    assert (speculative.setting, speculative.figure) == ("q4, speculation", row["speculative"])


def test_the_second_question_is_the_first_with_one_edit() -> None:
    for first, second in edits(200, random.Random(1)):
        before, after = first.split(": ")[1].split(), second.split(": ")[1].split()
        assert len(after) - len(before) in (0, 1)
        ends = sum(1 for a, b in zip(before, after, strict=False) if a == b)
        if len(after) == len(before):
            assert ends >= len(before) - 1
        else:
            assert any(after[:place] + after[place + 1 :] == before for place in range(len(after)))


def test_medians_are_added_up_and_differences_found() -> None:
    clock = iter([9.0, 9.0, 9.0, 9.0, 2.0, 1.0, 4.0, 2.0, 3.0, 1.0, 8.0, 2.0, 2.0, 7.0, 4.0, 2.0])

    def case(tokens: tuple[int, ...], other: tuple[int, ...]) -> object:
        return lambda speculate: Decoded(other if speculate else tokens, next(clock), 6, 3)

    # Rounds alternately begin with and without speculation; the first one does not count.
    row = measure(Task("t", [case((1, 2, 3), (1, 2, 3)), case((4, 5), (4, 6))]), 3)  # type: ignore[list-item]
    assert row["different"] == 1
    assert (row["plain_seconds"], row["speculative_seconds"]) == (2 + 4, 3 + 2)
    total = together("all", [row, row])
    assert total["gain"] == 6 / 5
    assert total["tokens"] == 10
    assert total["plain"] == 6 / 12
