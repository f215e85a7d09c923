"""Draw the plots of the documentation from the measurements of one or more benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby

import matplotlib
from matplotlib.axes import Axes

from benchmarks.engines import ENGINES
from benchmarks.measurements import Measurement, MissingError, Results
from benchmarks.plot_style import (
    GRID,
    IK,
    INK,
    LIMIT,
    ON_BAR,
    OURS,
    PARAMETERS,
    THEIRS,
    Plot,
    bare,
    conditions_text,
    short_name,
)

COLOURS = {"qwchat": OURS, "llama.cpp": THEIRS, "ik_llama.cpp": IK}
CLASSES = {"4 bits": "q4", "8 bits": "q8"}
COMPARISON = "vs_llama_cpp"


def prefill(results: Results) -> Plot:
    """Draw prefill of 512 tokens in both engines as a share of the int8 peak."""
    found = results.select(COMPARISON, cell="prefill", size=512)
    return _shares(found, "Prefill of 512 tokens", "of the processor's int8 peak", "int8 peak")


def decode(results: Results) -> Plot:
    """Draw decode with an empty context in both engines as a share of the read bandwidth."""
    found = results.select(COMPARISON, cell="decode", size=0)
    return _shares(found, "Decode, empty context", "of the memory's read bandwidth", "bandwidth")


def _shares(found: Sequence[Measurement], title: str, axis: str, limit: str) -> Plot:
    """Draw each engine's share of the limit by model and class of formats, labelled with tokens per second."""
    groups = [(key, list(each)) for key, each in groupby(found, lambda each: (short_name(each), each.weights))]
    engines = [engine for engine in ENGINES if any(each.engine == engine for each in found)]
    step = 0.76 / len(engines)
    plot = Plot(
        title,
        "Tokens per second, and their share of what the machine allows",
        [23.0 * len(engines) * len(groups)],
        left=58,
        right=12,
    )
    axes = plot.axes[0]
    bare(axes, grid="x")
    for row, (_, pair) in enumerate(groups):
        for each in pair:
            place = row + step * (engines.index(each.engine) - (len(engines) - 1) / 2)
            share = 100 * (each.share or 0.0)
            axes.barh(place, share, step - 0.04, color=COLOURS[each.engine])
            unit = "" if row else " tokens/s"
            axes.text(share + 1.2, place, f"{_rate(each.figure)}{unit}", color=INK, va="center_baseline")
            if row == 0:
                axes.text(1.2, place, each.engine, color=ON_BAR, va="center_baseline")
    axes.axvline(100, color=LIMIT, linewidth=2)
    axes.text(100, -0.58, limit, color=LIMIT, ha="right", va="baseline")
    axes.set_yticks(range(len(groups)), [f"{name} {CLASSES[bits or '']}" for (name, bits), _ in groups], color=INK)
    axes.set(xlim=(0, 104), ylim=(len(groups) - 0.5, -0.5), xlabel=f"% {axis}", xticks=range(0, 101, 20))
    plot.caption(
        "Random weights in the shapes of Qwen2; llama.cpp with its best file and settings in each cell",
        conditions_text(found),
        "python -m benchmarks.vs_llama_cpp",
    )
    return plot


def decode_depth(results: Results) -> Plot:
    """Draw decode speed over the tokens in the context, with the limit of the read bandwidth."""
    found = results.select(COMPARISON, cell="decode", model="qwen2-0.5b-instruct", weights="4 bits")
    plot = Plot("Decode as the context fills", "0.5B q4, tokens per second", [190.0], left=30, right=86)
    axes = plot.axes[0]
    bare(axes, grid="y")
    both = any(each.engine == "ik_llama.cpp" for each in found)
    for engine in ENGINES:
        # The curves of the two rivals may lie close together.
        under = both and engine == "llama.cpp"
        points = [each for each in found if each.engine == engine]
        if not points:
            continue
        sizes = [each.size or 0 for each in points]
        axes.plot(
            sizes, [each.figure for each in points], color=COLOURS[engine], marker="o", markersize=5, clip_on=False
        )
        for each in points:
            axes.annotate(
                _rate(each.figure), (each.size or 0, each.figure), (0, -14 if under else 7), textcoords="offset points",
                ha="left" if not each.size else "center", color=INK,
            )  # fmt: skip
        _end_label(axes, sizes[-1], points[-1].figure - (5 if under else 0), engine)
    ours = [each for each in found if each.engine == "qwchat" and each.ceiling]
    axes.plot(
        [each.size or 0 for each in ours], [each.ceiling or 0.0 for each in ours], color=LIMIT, linestyle=(0, (4, 3))
    )
    _end_label(axes, ours[-1].size or 0, ours[-1].ceiling or 0.0, "read bandwidth", LIMIT)
    axes.set(
        xlim=(-200, 16384),
        ylim=(0, 150),
        yticks=(0, 50, 100, 150),
        xlabel="tokens in the context",
        xticks=range(0, 16385, 4096),
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    plot.caption(
        "The limit: weights and 8-bit KV cache read once per token. llama.cpp with its best file and settings",
        conditions_text(found),
        "python -m benchmarks.vs_llama_cpp qwen2-0.5b-instruct",
    )
    return plot


def kv_cache(results: Results) -> Plot:
    """Draw the memory of the KV cache over the context window, by kind and as `auto` chooses it."""
    found = results.select("kv_memory", cell="KV cache")
    models = list(dict.fromkeys(short_name(each) for each in found))
    subtitle = "--kv auto keeps f32 while it takes up to 128 MiB, and q8 beyond"
    plot = Plot("Memory of the KV cache", subtitle, [120.0] * len(models), left=52, right=42)
    for axes, model in zip(plot.axes, models, strict=True):
        bare(axes, grid="y")
        points = [each for each in found if short_name(each) == model]
        for kind in dict.fromkeys(each.setting for each in points):
            line = [(each.size or 0, each.figure / 1e6) for each in points if each.setting == kind]
            axes.plot(*zip(*line, strict=True), color=THEIRS, linewidth=1.4)
            _end_label(axes, *line[-1], kind)
        chosen = sorted((each.size or 0, each.figure / 1e6) for each in points if each.note)
        axes.plot(*zip(*chosen, strict=True), color=OURS, linewidth=3)
        axes.annotate(
            "auto",
            chosen[-2],
            (0, 8),
            textcoords="offset points",
            ha="center",
            va="baseline",
            color=OURS,
            weight="bold",
        )
        axes.set(xlim=(0, 32768), xticks=range(0, 32769, 8192))
        axes.set_ylim(0, 1.08 * axes.dataLim.y1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(
            lambda value, _: f"{value / 1000:g} GB" if value >= 1000 else f"{value:g} MB" if value else "0"
        )
        axes.text(0.01, 0.8, model, transform=axes.transAxes, weight="bold", va="baseline")
    plot.axes[-1].set_xlabel("context window in tokens")
    plot.caption("Computed from the layout of the cache", conditions_text(found), "python -m benchmarks.kv_memory")
    return plot


def memory(results: Results) -> Plot:
    """Draw the memory of a process besides the mapped weights, beside llama.cpp."""
    found = _beside_llama_cpp(results.select(COMPARISON, cell="anonymous memory"))
    plot = Plot(
        "Memory besides the mapped weights", "4-bit weights, 4,096 tokens in the context", [88.0], left=46, right=14
    )
    _spans(plot, [(f"{name} q4", list(each)) for name, each in groupby(found, short_name)], _bytes)
    plot.axes[0].set(
        xlim=(20e6, 11e9), xticks=(100e6, 1e9, 10e9), xlabel="anonymous memory of the process (logarithmic)"
    )
    plot.axes[0].xaxis.set_major_formatter(lambda value, _: _bytes(value))
    plot.caption(
        "Two dots for llama.cpp where two files were measured, Q4_0 and Q4_K_M",
        conditions_text(found),
        "python -m benchmarks.vs_llama_cpp",
    )
    return plot


def _beside_llama_cpp(found: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements without those of ik_llama.cpp: its dots would lie on those of llama.cpp."""
    return [each for each in found if each.engine != "ik_llama.cpp"]


def startup(results: Results) -> Plot:
    """Draw the time to the first token and the time to open a model, beside llama.cpp."""
    starts = results.select("startup", cell="start to first token")
    loads = _beside_llama_cpp(results.select(COMPARISON, cell="load"))
    cold = [each for each in starts if each.setting.endswith("cold")]
    name = short_name(starts[0])
    rows = [(f"{name}, first run", cold), (f"{name}, later runs", [each for each in starts if each not in cold])]
    rows += [(f"{name}, model opened", list(each)) for name, each in groupby(loads, short_name)]
    subtitle = "Process start to first token; and the time to open the model alone"
    plot = Plot("Start-up", subtitle, [36.0 * len(rows)], left=108, right=14)
    _spans(plot, rows, _seconds)
    plot.axes[0].set(xlim=(0.05, 20), xticks=(0.1, 0.2, 0.5, 1, 2, 5, 10), xlabel="time (logarithmic)")
    plot.axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    plot.caption(
        f"4-bit weights in the page cache, prompt of {starts[0].size} tokens. The first run compiles. Band: all rounds",
        conditions_text([*starts, *loads]),
        "python -m benchmarks.startup, python -m benchmarks.vs_llama_cpp",
    )
    return plot


def _spans(plot: Plot, rows: Sequence[tuple[str, Sequence[Measurement]]], spelled: Callable[[float], str]) -> None:
    """Draw one row per label on a logarithmic axis: a dot for each measurement, joined by a line."""
    axes = plot.axes[0]
    bare(axes, grid="x")
    axes.set_xscale("log")
    axes.minorticks_off()
    for row, (_, dots) in enumerate(rows):
        figures = [each.figure for each in dots]
        axes.plot((min(figures), max(figures)), (row, row), color=GRID, linewidth=2, zorder=1)
        for each in dots:
            axes.plot(each.figure, row, marker="o", markersize=8, color=COLOURS[each.engine])
            lowest, highest = each.lowest or each.figure, each.highest or each.figure
            axes.plot((lowest, highest), (row, row), color=COLOURS[each.engine], linewidth=6, alpha=0.3, zorder=1)
            if min(figures) < each.figure < max(figures):
                anchor, offset, side = each.figure, (0, -16), "center"
            elif each.figure == min(figures) and len(figures) > 1:
                anchor, offset, side = lowest, (-8, 0), "right"
            else:
                anchor, offset, side = highest, (8, 0), "left"
            text = spelled(each.figure)
            axes.annotate(
                text, (anchor, row), offset, textcoords="offset points", ha=side, va="center_baseline", color=INK
            )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    plot.legend({engine: COLOURS[engine] for engine in COLOURS if engine != "ik_llama.cpp"})


def _end_label(axes: Axes, x: float, y: float, text: str, colour: str = INK) -> None:
    """Write the name of a curve at its right end."""
    axes.annotate(
        text, (x, y), (8, 0), textcoords="offset points", va="center_baseline", color=colour, annotation_clip=False
    )


def _rate(figure: float) -> str:
    """Return tokens per second with one decimal, or with none from 200."""
    return f"{figure:,.0f}" if figure >= 200 else f"{figure:.1f}"


def _bytes(figure: float) -> str:
    """Return bytes in MB, or in GB from 1,000 MB."""
    return f"{figure / 1e6:.0f} MB" if figure < 1e9 else f"{figure / 1e9:.3g} GB"


def _seconds(figure: float) -> str:
    """Return seconds with two decimals, or with one from a second."""
    return f"{figure:.2f} s" if figure < 1 else f"{figure:.1f} s"


PLOTS: dict[str, Callable[[Results], Plot]] = {
    "prefill": prefill,
    "decode": decode,
    "decode-depth": decode_depth,
    "memory": memory,
    "kv-cache": kv_cache,
    "startup": startup,
}


def draw(results: Results) -> dict[str, str]:
    """Return the SVG of every plot by name; plots whose measurements are missing are left out."""
    drawn: dict[str, str] = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(PARAMETERS)
        for name, plot in PLOTS.items():
            with suppress(MissingError):
                drawn[name] = plot(results).svg()
    return drawn
