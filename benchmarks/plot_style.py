"""Style of the plots: colours for light and dark pages, the reader's own font, and reproducible bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measurements import Measurement

WIDTH = 420.0  # points, which browsers show as 560 pixels
TEXT_SIZE, SMALL_SIZE = 10.0, 8.0
INK, MUTED, GRID = "#1f2328", "#59636e", "#d1d9e0"
OURS, THEIRS, IK, LIMIT, ON_BAR = "#1f6feb", "#6e7781", "#8250df", "#c4551c", "#ffffff"
DARK = {
    INK: "#e6edf3",
    MUTED: "#a3acb6",
    GRID: "#3d444d",
    OURS: "#4184e4",
    THEIRS: "#7d8794",
    IK: "#a371f7",
    LIMIT: "#f0883e",
}
FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif'
SIMD_NAMES = {"avx512vnni": "AVX-512 VNNI", "avxvnni": "AVX-VNNI", "avx2": "AVX2", "neon": "NEON"}
SHORT_NAMES = {"qwen2-0.5b-instruct": "0.5B", "qwen2-1.5b-instruct": "1.5B", "qwen2-7b-instruct": "7B"}
METADATA = ("Creator", "Date", "Format", "Type")  # left out of the file
PARAMETERS = {
    "svg.fonttype": "none",  # text elements instead of outlines
    "svg.hashsalt": "qwchat",  # ids that do not change between runs
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT_SIZE,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": TEXT_SIZE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


class Plot:
    """One figure with a title, one or more axes one below the other, and a caption."""

    def __init__(self, title: str, subtitle: str, heights: Iterable[float], *, left: float, right: float) -> None:
        """Make the axes.

        Args:
            title: statement of what is shown.
            subtitle: quantity, model and setting.
            heights: height of each axes in points.
            left: margin to the left of the axes in points.
            right: margin to their right in points.
        """
        axes_heights = list(heights)
        top, between, bottom = 50.0, 34.0, 72.0
        height = top + sum(axes_heights) + between * (len(axes_heights) - 1) + bottom
        self.figure = Figure(figsize=(WIDTH / 72, height / 72))
        self.figure.text(0, 1 - 12 / height, title, weight="bold", size=TEXT_SIZE + 2, va="baseline")
        self.figure.text(0, 1 - 28 / height, subtitle, color=MUTED, va="baseline")
        self._height = height
        self.axes: list[Axes] = []
        upper = height - top
        for each in axes_heights:
            box = (left / WIDTH, (upper - each) / height, (WIDTH - left - right) / WIDTH, each / height)
            self.axes.append(self.figure.add_axes(box))
            upper -= each + between

    def caption(self, *lines: str) -> None:
        """Write at most three lines at the bottom."""
        for number, line in enumerate(lines):
            offset = (6 + 11 * (len(lines) - 1 - number)) / self._height
            self.figure.text(0, offset, line, color=MUTED, size=SMALL_SIZE, va="baseline")

    def legend(self, colours: Mapping[str, str]) -> None:
        """Write the names of the series beside the title, each behind a dot in its colour."""
        place = WIDTH
        for name, colour in reversed(colours.items()):
            place -= 6.2 * len(name) + 24
            for text, ink, offset in (("●", colour, 0), (name, INK, 12)):
                self.figure.text((place + offset) / WIDTH, 1 - 12 / self._height, text, color=ink, va="baseline")

    def svg(self) -> str:
        """Return the figure as SVG, with colours that follow the page's light or dark scheme."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(METADATA))
        drawing = buffer.getvalue()
        head, opening, rest = drawing[drawing.index("<svg") :].partition(" <defs>\n")
        lines = f"{head} <style>{_style()}</style>\n{opening}{rest}".splitlines()
        return "\n".join(line.rstrip() for line in lines) + "\n"


def _style() -> str:
    """Return the style sheet: the reader's font, and other colours where the page is dark."""
    rules = "".join(
        f'[style*="{name}: {light}"]{{{name}:{dark}!important}}'
        for light, dark in DARK.items()
        for name in ("fill", "stroke")
    )
    return f"text{{font-family:{FONTS}!important}}@media (prefers-color-scheme:dark){{{rules}}}"


def conditions_text(measurements: Sequence[Measurement]) -> str:
    """Return machine, SIMD level and dates of the measurements, such as `2 cores, Zen 5 server · 24 November 2026`."""
    parts: list[str] = []
    for each in measurements:
        simd = each.conditions.simd
        machine = [each.conditions.machine, SIMD_NAMES.get(simd, simd) if simd else ""]
        text = ", ".join(part for part in machine if part)
        parts += [text] if text not in parts else []
    days = sorted({date.fromisoformat(each.conditions.date) for each in measurements})
    spelled = [f"{day.day} {day:%B %Y}" for day in dict.fromkeys((days[0], days[-1]))]
    machines = "; ".join(parts)
    return machines[0].upper() + machines[1:] + " · " + " to ".join(spelled)


def short_name(measurement: Measurement) -> str:
    """Return the size of a model that is known by its shape, or the model's name."""
    return SHORT_NAMES.get(measurement.model or "", measurement.model or "")


def bare(axes: Axes, *, grid: str) -> None:
    """Leave an axes with grid lines along `x` or `y` and without tick marks."""
    axes.tick_params(length=0)
    axes.grid(axis=grid)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
