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
    prune,
    ratio,
    rival_contenders,
    rivals,
    rounds_for,
    survey_order,
)
from benchmarks.engines import RIVALS

OURS = Contender("qwchat", "q4", Setting("q8", "q8"))


def theirs(*, repack: bool = True, flash: bool = False, keys: str = "f16", values: str = "f16") -> Contender:
    return Contender("llama.cpp", "Q4_0", Setting(keys, values, repack, flash, 512))


def ik(name: str = "Q4_0", *, repack: bool = True, flash: bool = False) -> Contender:
    return Contender("ik_llama.cpp", name, Setting("f16", "f16", repack, flash, 512))


def test_every_setting_once() -> None:
    all_of_them = list(rival_contenders("llama.cpp", ("Q4_0", "Q4_K_M")))
    assert len(set(all_of_them)) == len(all_of_them) == 16
    assert {contender.setting.repack for contender in all_of_them} == {True, False}
    assert {contender.setting.flash for contender in all_of_them} == {True, False}
    # llama.cpp refuses a quantised V without flash attention.
    assert all(contender.setting.flash or contender.setting.values == "f16" for contender in all_of_them)


def test_labels() -> None:
    assert OURS.label == "q4, kv q8"
    assert theirs(keys="q8_0").label == "Q4_0, repack, no flash, kv q8_0/f16, ubatch 512"
    assert theirs(repack=False, flash=True).label == "Q4_0, no repack, flash, kv f16, ubatch 512"

    assert ik("IQ4_KS", flash=True).label == "ik IQ4_KS, repack, flash, kv f16, ubatch 512"


def test_the_rivals_have_the_same_settings_in_processes_of_their_own() -> None:
    first, second = (list(rival_contenders(engine, ("Q4_0",))) for engine in RIVALS)
    assert [each.setting for each in first] == [each.setting for each in second]
    assert not {each.worker for each in first} & {each.worker for each in second}
    assert not {each.label for each in first} & {each.label for each in second}


def test_the_rivals_take_turns_in_the_survey() -> None:
    order = survey_order({"llama.cpp": ("Q4_0",), "ik_llama.cpp": ("Q4_0", "IQ4_KS")})
    assert len(set(order)) == len(order) == 24
    assert list(dict.fromkeys((each.engine, each.format, each.setting.repack) for each in order)) == [
        ("llama.cpp", "Q4_0", True),
        ("ik_llama.cpp", "Q4_0", True),
        ("llama.cpp", "Q4_0", False),
        ("ik_llama.cpp", "Q4_0", False),
        ("ik_llama.cpp", "IQ4_KS", True),
        ("ik_llama.cpp", "IQ4_KS", False),
    ]
    assert survey_order({"llama.cpp": ("Q4_0",)}) == list(rival_contenders("llama.cpp", ("Q4_0",)))


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


def test_a_rival_does_not_displace_the_other() -> None:
    before = [ContenderResult(theirs(), 40.0), ContenderResult(ik(), 100.0), ContenderResult(ik(repack=False), 60.0)]
    assert prune(ContenderResult(theirs()), before) == ""
    assert prune(ContenderResult(ik(repack=False)), before) == "pruned: 60.0 of 100.0 tok/s at the length before"
    assert rivals(Cell("prefill", 512), before, ()) == [theirs(), ik()]
    long = rivals(Cell("prefill", LARGE_BATCH), [ContenderResult(theirs(), 40.0), ContenderResult(ik(), 100.0)], ())
    assert [(each.engine, each.setting.ubatch) for each in long] == [
        (engine, ubatch) for engine in RIVALS for ubatch in (512, LARGE_BATCH)
    ]


def test_no_more_rivals_than_fit() -> None:
    results = [ContenderResult(contender, 100.0) for contender in rival_contenders("llama.cpp", ("Q4_0",))]
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
    faster, slower = (ContenderResult(ik("IQ4_KS"), rates=[rate]) for rate in (20.0, 5.0))
    assert ratio([*results, faster]) == pytest.approx(31 / 20)
    assert ratio([*results, slower]) == pytest.approx(31 / 11)
    assert ratio([results[0], slower]) == pytest.approx(31 / 5)
    # A rival that was not measured might have been the best.
    assert ratio([*results, ContenderResult(ik(), left_out="out of time for the survey")]) is None


def test_long_measurements_are_repeated_less() -> None:
    assert [rounds_for(1.0, 5), rounds_for(100.0, 5), rounds_for(100.0, 1)] == [5, 2, 1]
