"""Table of the comparison, and the bars that our formats are held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.rivals.contenders import Result

Column = Literal["weights", "engine"]


@dataclass(frozen=True)
class Bar:
    """Largest ratio of our mean divergence to a rival's, at the same bits or fewer.

    Attributes:
        ours: name of our contender.
        rival: name of the rival.
        limit: largest ratio on text of the calibration's kinds, and on all text if `limit_unlike` is None.
        limit_unlike: largest ratio on text unlike the calibration's.
        column: figures that are compared: those of the weights alone, or of the engine with its activations.
    """

    ours: str
    rival: str
    limit: float
    limit_unlike: float | None = None
    column: Column = "weights"


BARS = (
    Bar("q4", "Q4_K_M", 0.70),
    *(
        bar
        for calibrated in ("calibrated", "sequential")
        for bar in (
            Bar(f"q4, {calibrated}", "Q4_K_M + imatrix", 0.40, 0.70),
            Bar(f"q4-small, {calibrated}", "IQ4_XS + imatrix", 0.75),
            Bar(f"q4-small, {calibrated}", "Q4_0", 0.40),
            Bar(f"q4, {calibrated}", "GPTQ g128", 0.50),
            Bar(f"q4, {calibrated}", "AWQ g128", 0.50),
        )
    ),
    Bar("q8", "Q8_0", 1.0, column="engine"),
    Bar("q8, 16-bit activations", "Q8_0", 0.4, column="engine"),
    Bar("q8, calibrated, 16-bit activations", "Q8_0", 0.4, column="engine"),
)


@dataclass(frozen=True)
class Verdict:
    """A bar and what was reached: the ratio on each kind of text, and the limit there."""

    bar: Bar
    ratios: dict[str, float]
    limits: dict[str, float]
    fewer_bits: bool

    @property
    def met(self) -> bool:
        """Whether every ratio is within its limit, at the same bits or fewer."""
        return self.fewer_bits and all(ratio <= self.limits[kind] for kind, ratio in self.ratios.items())

    def line(self) -> str:
        """Return the verdict as one line."""
        ratios = ", ".join(f"{kind} {ratio:.2f} (≤ {self.limits[kind]:.2f})" for kind, ratio in self.ratios.items())
        bits = "" if self.fewer_bits else ", but not at fewer bits"
        return (
            f"{'met' if self.met else 'NOT MET'}: {self.bar.ours} / {self.bar.rival}, {self.bar.column}: {ratios}{bits}"
        )


def verdicts(results: Sequence[Result], unlike: Sequence[str]) -> Iterator[Verdict]:
    """Yield what was reached of every bar whose contenders were measured.

    Args:
        results: all rows of one model.
        unlike: kinds of text that are unlike the calibration text.
    """
    found = {each.name: each for each in results}
    for bar in BARS:
        ours, rival = found.get(bar.ours), found.get(bar.rival)
        if ours is None or rival is None:
            continue
        mine, other = getattr(ours, bar.column), getattr(rival, bar.column)
        ratios = {kind: mine[kind]["kl_mean"] / other[kind]["kl_mean"] for kind in mine}
        limits = {kind: bar.limit if kind not in unlike else bar.limit_unlike or bar.limit for kind in mine}
        yield Verdict(bar, ratios, limits, ours.bits <= rival.bits)


def markdown(results: Sequence[Result], kinds: Sequence[str]) -> str:
    """Return Markdown tables: all contenders with their mean KL on each kind of text, then the details of each kind."""
    rows = [[*_first(each), *(f"{_weights(each, kind)['kl_mean']:.2e}" for kind in kinds)] for each in results]
    tables = [_table(["contender", "bits", "encode s", "calibrate s", *kinds], rows)]
    for kind in kinds:
        heads = [kind, "KL", "95 % interval", "99.9 %", "same top", "ppl ratio", "engine KL", "llama.cpp KL"]
        tables.append(_table(heads, [_details(each, kind) for each in results]))
    return "\n\n".join(tables)


def _table(heads: list[str], rows: Sequence[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(each: Result) -> str:
    return f"**{each.name}**" if each.ours else each.name


def _weights(each: Result, kind: str) -> Mapping[str, Any]:
    return each.weights[kind]


def _first(each: Result) -> list[str]:
    calibration = f"{each.calibration_seconds:.1f}" if each.calibration_seconds else "–"
    return [_name(each), f"{each.bits:.3f}", f"{each.seconds:.1f}", calibration]


def _details(each: Result, kind: str) -> list[str]:
    weights = _weights(each, kind)
    interval = weights["kl_interval"]
    return [
        _name(each),
        f"{weights['kl_mean']:.2e}",
        "–" if interval is None else f"{interval[0]:.1e} to {interval[1]:.1e}",
        f"{weights['kl_99_9']:.1e}",
        f"{100 * weights['same_top']:.1f} %",
        f"{weights['perplexity_ratio']:.4f}",
        *(f"{other[kind]['kl_mean']:.2e}" if kind in other else "–" for other in (each.engine, each.own)),
    ]
