"""Cells and contenders of the comparison: which settings are measured, which are pruned, and which figure counts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from typing import Literal

from benchmarks.engines import RIVALS, Engine, Rival

KEEP_WITHIN = 0.85  # share of the best survey speed that a setting needs for the rounds
PRUNE_BELOW = 0.75  # a setting below this share of the best is not surveyed in longer cells
MOST_RIVALS = 3
SURVEY_SECONDS = 12.0  # longest survey of one setting
LARGE_BATCH = 2048
LONG_SECONDS = 30.0  # measurements that take longer get fewer rounds


@dataclass(frozen=True)
class Cell:
    """Prefill of `size` tokens into an empty cache, or decode at a depth of `size` tokens."""

    kind: Literal["prefill", "decode"]
    size: int

    @property
    def name(self) -> str:
        """Name such as "prefill 512" or "decode at 4,096"."""
        return f"prefill {self.size:,}" if self.kind == "prefill" else f"decode at {self.size:,}"

    def context(self, new_tokens: int) -> int:
        """Return the context window that a measurement needs, in tokens."""
        return self.size + (2 if self.kind == "prefill" else new_tokens + 4)

    def tokens(self, new_tokens: int) -> int:
        """Return the number of tokens that one measurement times."""
        return self.size if self.kind == "prefill" else new_tokens


@dataclass(frozen=True)
class Setting:
    """Options of an engine: `keys` and `values` are formats of the KV cache, the other fields apply to the rivals."""

    keys: str
    values: str
    repack: bool = False
    flash: bool = False
    ubatch: int = 0


@dataclass(frozen=True)
class Contender:
    """A model file, the engine that runs it, and its setting."""

    engine: Engine
    format: str
    setting: Setting

    @property
    def worker(self) -> tuple[str, str, bool]:
        """Key of the process: contenders with equal keys share a process and its weights."""
        return (self.engine, self.format, self.setting.repack)

    @property
    def label(self) -> str:
        """Label such as "Q4_0, repack, flash, kv q8_0, ubatch 512" or "q4, kv q8"; that of ik_llama.cpp names it."""
        setting = self.setting
        kv = setting.keys if setting.keys == setting.values else f"{setting.keys}/{setting.values}"
        if self.engine == "qwchat":
            return f"{self.format}, kv {kv}"
        repack, flash = "repack" if setting.repack else "no repack", "flash" if setting.flash else "no flash"
        name = self.format if self.engine == "llama.cpp" else f"ik {self.format}"
        return f"{name}, {repack}, {flash}, kv {kv}, ubatch {setting.ubatch}"


@dataclass
class ContenderResult:
    """Speeds of one contender in one cell, in tokens per second.

    Attributes:
        survey: speed in the survey; None if it was not surveyed.
        rates: speed in every round.
        others: cores that other processes used during each round.
        left_out: reason why there are no rounds, or "".
    """

    contender: Contender
    survey: float | None = None
    rates: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    left_out: str = ""

    @property
    def rate(self) -> float | None:
        """Median of the rounds."""
        return statistics.median(self.rates) if self.rates else None


def rival_contenders(engine: Rival, formats: Iterable[str]) -> Iterator[Contender]:
    """Yield every file with every setting of a rival: repacking, flash attention, and formats of the KV cache.

    Both rivals repack weights while loading them. Without flash attention only K can be quantised. Flash attention with
    different formats of K and V takes a path that is slower than either.
    """
    caches = ((False, "f16", "f16"), (True, "f16", "f16"), (False, "q8_0", "f16"), (True, "q8_0", "q8_0"))
    for name in formats:
        for repack in (True, False):
            for flash, keys, values in caches:
                yield Contender(engine, name, Setting(keys, values, repack, flash, 512))


def survey_order(formats: Mapping[Rival, Iterable[str]]) -> list[Contender]:
    """Return the contenders of all rivals, file by file in turns: a survey that ends early has measured each of them.

    Args:
        formats: files that each rival reads.
    """
    groups = [
        [list(group) for _, group in groupby(rival_contenders(engine, names), lambda each: each.worker)]
        for engine, names in formats.items()
    ]
    return [contender for turn in zip_longest(*groups, fillvalue=()) for group in turn for contender in group]


def prune(result: ContenderResult, before: Sequence[ContenderResult]) -> str:
    """Return the reason to leave a contender out of the survey of a cell, or "" if it must be surveyed.

    Args:
        result: the contender in this cell.
        before: results of all contenders in the next smaller cell of the same kind. Those of the contender's own
            engine count, so that every rival keeps its best settings.
    """
    engine = result.contender.engine
    own = next((other for other in before if other.contender == result.contender), None)
    if own is None:
        return ""
    if own.left_out:
        return own.left_out
    of_engine = [other for other in before if other.contender.engine == engine]
    best = max((other.survey for other in of_engine if other.survey is not None), default=0.0)
    if own.survey is not None and own.survey < PRUNE_BELOW * best:
        return f"pruned: {own.survey:.1f} of {best:.1f} tok/s at the length before"
    return ""


def rivals(cell: Cell, surveyed: Sequence[ContenderResult], before: Sequence[ContenderResult]) -> list[Contender]:
    """Return the contenders to measure in a cell, by engine, best first, and mark the others as pruned.

    A cell too long for a survey gets the best contender with flash attention and the best without of the previous
    cell, since which of the two is faster changes with the length. Long prompts are also evaluated in batches of 2,048.
    """
    return [
        contender
        for engine in RIVALS
        for contender in _rivals_of(
            cell,
            [result for result in surveyed if result.contender.engine == engine],
            [result for result in before if result.contender.engine == engine],
        )
    ]


def _rivals_of(cell: Cell, surveyed: Sequence[ContenderResult], before: Sequence[ContenderResult]) -> list[Contender]:
    """Return those of one engine."""
    running = [result for result in surveyed if not result.left_out]
    if all(result.survey is not None for result in running):
        chosen = _within(running, KEEP_WITHIN)[:MOST_RIVALS]
    else:
        ranked = _within(before, 0.0)
        firsts = (
            next((result for result in ranked if result.contender.setting.flash is flash), None)
            for flash in (True, False)
        )
        chosen = [result for result in firsts if result is not None]
    names = [result.contender for result in chosen]
    for result in running:
        if result.contender not in names:
            result.left_out = "pruned: not among the best of the survey"
    if cell.kind == "prefill" and cell.size >= LARGE_BATCH:
        names += [replace(name, setting=replace(name.setting, ubatch=LARGE_BATCH)) for name in names[:1]]
    return names


def _within(results: Iterable[ContenderResult], share: float) -> list[ContenderResult]:
    """Return the surveyed results that reach `share` of the best one, best first."""
    known = [result for result in results if result.survey is not None]
    known.sort(key=lambda result: result.survey or 0.0, reverse=True)
    return [result for result in known if (result.survey or 0.0) >= share * (known[0].survey or 0.0)]


def best(results: Iterable[ContenderResult], engine: str) -> ContenderResult | None:
    """Return the fastest result of an engine, or None if it was not measured."""
    measured = [result for result in results if result.contender.engine == engine and result.rates]
    return max(measured, key=lambda result: result.rate or 0.0, default=None)


def ratio(results: Sequence[ContenderResult]) -> float | None:
    """Return the speed of our best contender over that of the best of all rivals.

    None if we or one of the rivals were not measured, since that rival might have been the best.
    """
    ours = best(results, "qwchat")
    present = {result.contender.engine for result in results}
    winners = [best(results, engine) for engine in RIVALS if engine in present]
    rates = [winner.rate for winner in winners if winner is not None and winner.rate]
    if ours is None or not ours.rate or not rates or len(rates) < len(winners):
        return None
    return ours.rate / max(rates)


def rounds_for(seconds: float, rounds: int) -> int:
    """Return the number of rounds for measurements of `seconds`: long ones vary less and cost more."""
    return rounds if seconds < LONG_SECONDS else max(1, min(rounds, 2))
