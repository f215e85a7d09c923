"""Settings that are measured, settings that are pruned, and the figure that counts."""

from __future__ import annotations

import pytest

from benchmarks.cells import (
    LARGE_BATCH,
    MOST_RIVALS,
    Cell,
    Contender,
    ContenderResult,
    Setting,
    best,
    llama_contenders,
    prune,
    ratio,
    rivals,
    rounds_for,
)

OURS = Contender("qwchat", "q4", Setting("q8", "q8"))


def theirs(*, repack: bool = True, flash: bool = False, keys: str = "f16", values: str = "f16") -> Contender:
    return Contender("llama.cpp", "Q4_0", Setting(keys, values, repack, flash, 512))


def test_every_setting_once() -> None:
    all_of_them = list(llama_contenders(("Q4_0", "Q4_K_M")))
    assert len(set(all_of_them)) == len(all_of_them) == 16
    assert {contender.setting.repack for contender in all_of_them} == {True, False}
    assert {contender.setting.flash for contender in all_of_them} == {True, False}
    # llama.cpp refuses a quantised V without flash attention.
    assert all(contender.setting.flash or contender.setting.values == "f16" for contender in all_of_them)


def test_labels() -> None:
    assert OURS.label == "q4, kv q8"
    assert theirs(keys="q8_0").label == "Q4_0, repack, no flash, kv q8_0/f16, ubatch 512"
    assert theirs(repack=False, flash=True).label == "Q4_0, no repack, flash, kv f16, ubatch 512"


def test_cells_know_what_they_take() -> None:
    prefill, decode = Cell("prefill", 512), Cell("decode", 4096)
    assert (prefill.name, decode.name) == ("prefill 512", "decode at 4,096")
    assert (prefill.tokens(32), decode.tokens(32)) == (512, 32)
    assert prefill.context(32) > 512
    assert decode.context(32) > 4096 + 32


def test_a_setting_that_lost_clearly_is_not_surveyed_further() -> None:
    fast, slow, refused = theirs(), theirs(repack=False), theirs(flash=True)
    before = [
        ContenderResult(fast, 100.0),
        ContenderResult(slow, 60.0),
        ContenderResult(refused, None, left_out="refused: why"),
    ]
    assert prune(ContenderResult(fast), before) == ""
    assert prune(ContenderResult(slow), before) == "pruned: 60.0 of 100.0 tok/s at the length before"
    assert prune(ContenderResult(refused), before) == "refused: why"
    assert prune(ContenderResult(fast), ()) == ""


def test_rivals_are_those_near_the_best() -> None:
    results = [
        ContenderResult(theirs(), 80.0),
        ContenderResult(theirs(flash=True), 100.0),
        ContenderResult(theirs(keys="q8_0"), 91.0),
    ]
    assert rivals(Cell("prefill", 512), results, ()) == [theirs(flash=True), theirs(keys="q8_0")]
    assert [bool(result.left_out) for result in results] == [True, False, False]


def test_no_more_rivals_than_fit() -> None:
    results = [ContenderResult(contender, 100.0) for contender in llama_contenders(("Q4_0",))]
    assert len(rivals(Cell("decode", 0), results, ())) == MOST_RIVALS


def test_a_cell_too_long_for_a_survey_takes_both_ways_of_attention() -> None:
    before = [
        ContenderResult(theirs(), 100.0),
        ContenderResult(theirs(keys="q8_0"), 99.0),
        ContenderResult(theirs(flash=True), 70.0),
    ]
    surveyed = [ContenderResult(result.contender) for result in before]
    assert rivals(Cell("decode", 9), surveyed, before) == [theirs(flash=True), theirs()]
    assert [bool(result.left_out) for result in surveyed] == [False, True, False]


def test_long_prompts_are_also_read_in_large_batches() -> None:
    chosen = rivals(
        Cell("prefill", LARGE_BATCH), [ContenderResult(theirs(), 100.0), ContenderResult(theirs(flash=True), 95.0)], ()
    )
    assert [(each.setting.flash, each.setting.ubatch) for each in chosen] == [
        (False, 512),
        (True, 512),
        (False, LARGE_BATCH),
    ]


def test_the_best_median_counts() -> None:
    results = [
        ContenderResult(OURS, rates=[30.0, 90.0, 31.0]),
        ContenderResult(theirs(), rates=[10.0, 11.0, 12.0]),
        ContenderResult(theirs(flash=True), rates=[100.0, 9.0, 8.0]),
        ContenderResult(theirs(repack=False), survey=99.0, left_out="pruned"),
    ]
    winner = best(results, "llama.cpp")
    assert winner is not None
    assert winner.contender == theirs()
    assert ratio(results) == pytest.approx(31 / 11)
    assert ratio(results[:1]) is None


def test_long_measurements_are_repeated_less() -> None:
    assert [rounds_for(1.0, 5), rounds_for(100.0, 5), rounds_for(100.0, 1)] == [5, 2, 1]
