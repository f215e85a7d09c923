"""What is measured, with which settings, and which of them counts: the parts of the comparison that compute nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

KEEP_WITHIN = 0.85  # settings that reach this share of the best in the survey go into the rounds
PRUNE_BELOW = 0.75  # a setting below this share of the best is not surveyed at greater lengths
MOST_RIVALS = 3
SURVEY_SECONDS = 12.0  # a survey that would take longer is left out
LARGE_BATCH = 2048
LONG_SECONDS = 30.0  # a measurement that takes longer is made in fewer rounds


@dataclass(frozen=True)
class Cell:
    """`prefill` of `size` tokens from an empty cache, or `decode` after `size` positions."""

    kind: Literal["prefill", "decode"]
    size: int

    @property
    def name(self) -> str:
        """Such as "prefill 512" or "decode at 4,096"."""
        return f"prefill {self.size:,}" if self.kind == "prefill" else f"decode at {self.size:,}"

    def context(self, new_tokens: int) -> int:
        """Positions that measuring it takes."""
        return self.size + (2 if self.kind == "prefill" else new_tokens + 4)

    def tokens(self, new_tokens: int) -> int:
        """Tokens that one measurement times."""
        return self.size if self.kind == "prefill" else new_tokens


@dataclass(frozen=True)
class Setting:
    """How an engine runs. `keys`/`values`: format of the KV cache; the other fields are llama.cpp's."""

    keys: str
    values: str
    repack: bool = False
    flash: bool = False
    ubatch: int = 0


@dataclass(frozen=True)
class Contender:
    """A model file in one of the two engines, and how it runs."""

    engine: Literal["qwchat", "llama.cpp"]
    format: str
    setting: Setting

    @property
    def worker(self) -> tuple[str, str, bool]:
        """Contenders that agree in this share a process and its weights."""
        return (self.engine, self.format, self.setting.repack)

    @property
    def label(self) -> str:
        """Such as "Q4_0, repack, flash, kv q8_0, ubatch 512" or "q4, kv q8"."""
        setting = self.setting
        kv = setting.keys if setting.keys == setting.values else f"{setting.keys}/{setting.values}"
        if self.engine == "qwchat":
            return f"{self.format}, kv {kv}"
        repack, flash = "repack" if setting.repack else "no repack", "flash" if setting.flash else "no flash"
        return f"{self.format}, {repack}, {flash}, kv {kv}, ubatch {setting.ubatch}"


@dataclass
class ContenderResult:
    """One contender in one cell: tokens per second in the survey and in every round, or why there are none.

    `others`: cores that other processes took during each round.
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


def llama_contenders(formats: Iterable[str]) -> Iterator[Contender]:
    """Every file with every setting that llama.cpp has: repack, flash attention, and the KV formats these allow.

    Without flash attention only K may be quantised; mixed formats with it take a path that is slower than either.
    """
    caches = ((False, "f16", "f16"), (True, "f16", "f16"), (False, "q8_0", "f16"), (True, "q8_0", "q8_0"))
    for name in formats:
        for repack in (True, False):
            for flash, keys, values in caches:
                yield Contender("llama.cpp", name, Setting(keys, values, repack, flash, 512))


def prune(result: ContenderResult, before: Sequence[ContenderResult]) -> str:
    """Why `result`'s contender need not be surveyed in a cell, given that of the next shorter one; "" if it must."""
    own = next((other for other in before if other.contender == result.contender), None)
    if own is None:
        return ""
    if own.left_out:
        return own.left_out
    best = max((other.survey for other in before if other.survey is not None), default=0.0)
    if own.survey is not None and own.survey < PRUNE_BELOW * best:
        return f"pruned: {own.survey:.1f} of {best:.1f} tok/s at the length before"
    return ""


def rivals(cell: Cell, surveyed: Sequence[ContenderResult], before: Sequence[ContenderResult]) -> list[Contender]:
    """The contenders of a cell's rounds, best first; the others are marked as pruned.

    A cell that is too long for a survey gets the best with flash attention and the best without of the length before:
    which of the two wins changes with the length. Long prompts are also read in batches of 2,048.
    """
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
    """Surveyed results that reach `share` of the best of them, best first."""
    known = [result for result in results if result.survey is not None]
    known.sort(key=lambda result: result.survey or 0.0, reverse=True)
    return [result for result in known if (result.survey or 0.0) >= share * (known[0].survey or 0.0)]


def best(results: Iterable[ContenderResult], engine: str) -> ContenderResult | None:
    """The fastest of an engine's contenders."""
    measured = [result for result in results if result.contender.engine == engine and result.rates]
    return max(measured, key=lambda result: result.rate or 0.0, default=None)


def ratio(results: Sequence[ContenderResult]) -> float | None:
    """Our best over llama.cpp's best."""
    ours, theirs = best(results, "qwchat"), best(results, "llama.cpp")
    if ours is None or theirs is None or not ours.rate or not theirs.rate:
        return None
    return ours.rate / theirs.rate


def rounds_for(seconds: float, rounds: int) -> int:
    """Rounds of a cell of which one measurement takes `seconds`: long ones are less noisy and cost more."""
    return rounds if seconds < LONG_SECONDS else max(1, min(rounds, 2))
