"""Rows of a terminal as an SVG: one still picture, or an animation that needs no scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from docs.pictures.rows import BACKGROUND, FOREGROUND, Row, Run, Style
from docs.pictures.terminal import Frame

FONT_SIZE, CELL, LINE = 14, 8.43, 19
PADDING, BAR = 14, 34
MUTED = "#8b95a7"
HOLD_SECONDS = 6.0  # The last frame of an animation stays for so long.
FONTS = "ui-monospace, 'Cascadia Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace"
DATA = "<metadata>", "</metadata>"

STRIP = LINE + 6  # from one row of a strip to the next, so that none shows beside another

# Arms of lines that are drawn, so that they meet in every font: left, right, up, down; 2 is a heavy one.
ARMS = {
    "─": (1, 1, 0, 0),
    "│": (0, 0, 1, 1),
    "┌": (0, 1, 0, 1),
    "┐": (1, 0, 0, 1),
    "└": (0, 1, 1, 0),
    "┘": (1, 0, 1, 0),
    "├": (0, 1, 1, 1),
    "┤": (1, 0, 1, 1),
    "┬": (1, 1, 0, 1),
    "┴": (1, 1, 1, 0),
    "┼": (1, 1, 1, 1),
    "━": (2, 2, 0, 0),
    "╸": (2, 0, 0, 0),
    "╺": (0, 2, 0, 0),
}


def still(rows: Sequence[Row], columns: int, title: str) -> str:
    """Return the picture of one screen."""
    styles = _Styles()
    body = "\n".join(
        f'<g transform="translate(0,{number * LINE})">{_row(row, styles)}</g>' for number, row in enumerate(rows) if row
    )
    data = {"title": title, "columns": columns, "marks": [0], **_packed([Frame(0.0, tuple(rows))])}
    return _window(len(rows), columns, title, styles.css(), body, data)


def animated(frames: Sequence[Frame], marks: Sequence[int], rows: int, columns: int, title: str) -> str:
    """Return a picture that plays `frames`, which stay for as long as they did, and begins again after the last.

    Each row of the window is a strip of what it holds in turn. The last is at rest in the window: that is what is seen
    where nothing may move.
    """
    styles = _Styles()
    length = frames[-1].seconds + HOLD_SECONDS
    rules, strips = [], []
    for number in range(rows):
        changes = _changes(frames, number)
        contents = list(dict.fromkeys([changes[-1][1], *(row for _, row in changes)]))
        drawn = "".join(
            f'<g transform="translate(0,{place * STRIP})">{_row(row, styles)}</g>' if place else _row(row, styles)
            for place, row in enumerate(contents)
            if row
        )
        if not drawn:
            continue
        if len(changes) > 1:
            steps = "".join(
                f"{_number(100 * seconds / length)}%{{transform:translateY({-contents.index(row) * STRIP}px)}}"
                for seconds, row in changes
            )
            rules.append(
                f"@keyframes r{number}{{{steps}}}#r{number}{{animation:r{number} {_number(length)}s step-end infinite}}"
            )
            drawn = f'<g id="r{number}">{drawn}</g>'
        size = _number(columns * CELL), LINE + 2
        place = f'y="{number * LINE - 1}" width="{size[0]}" height="{size[1]}" viewBox="0 -1 {size[0]} {size[1]}"'
        strips.append(f"<svg {place}>{drawn}</svg>")
    rules.append("@media (prefers-reduced-motion:reduce){g{animation:none!important}}")
    data = {"title": title, "columns": columns, "height": rows, "marks": [*marks], **_packed(frames)}
    return _window(rows, columns, title, styles.css() + "\n" + "\n".join(rules), "\n".join(strips), data)


def data_of(svg: str) -> dict[str, Any]:
    """Return what a picture was drawn from."""
    text = svg.partition(DATA[0])[2].partition(DATA[1])[0]
    found: dict[str, Any] = json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return found


def frames_of(data: dict[str, Any]) -> list[Frame]:
    """Return the frames in the data of a picture."""
    styles = [Style(*style) for style in data["styles"]]
    rows = [tuple(Run(column, text, styles[style]) for column, text, style in row) for row in data["rows"]]
    return [Frame(seconds, tuple(rows[row] for row in held)) for seconds, held in data["frames"]]


def again(data: dict[str, Any]) -> str:
    """Return the picture that its data give."""
    frames = frames_of(data)
    if "height" in data:
        return animated(frames, data["marks"], data["height"], data["columns"], data["title"])
    return still(frames[0].rows, data["columns"], data["title"])


def _packed(frames: Sequence[Frame]) -> dict[str, object]:
    """Return frames as JSON keeps them: each style and each row once."""
    styles: dict[Style, int] = {}
    rows: dict[Row, int] = {}
    held = [[round(frame.seconds, 2), [rows.setdefault(row, len(rows)) for row in frame.rows]] for frame in frames]
    packed = [[[run.column, run.text, styles.setdefault(run.style, len(styles))] for run in row] for row in rows]
    return {"styles": list(styles), "rows": packed, "frames": held}


def _changes(frames: Sequence[Frame], number: int) -> list[tuple[float, Row]]:
    """Return the seconds at which a row changes, and what it then holds."""
    changes: list[tuple[float, Row]] = []
    for frame in frames:
        row = frame.rows[number] if number < len(frame.rows) else ()
        if not changes or changes[-1][1] != row:
            changes.append((round(frame.seconds, 2) if changes else 0.0, row))
    return changes


class _Styles:
    """Styles that a picture uses, and their classes."""

    def __init__(self) -> None:
        self._names: dict[Style, str] = {}

    def name(self, style: Style) -> str:
        style = style._replace(background=None)
        return self._names.setdefault(style, f"s{len(self._names)}")

    def css(self) -> str:
        rules = []
        for style, name in self._names.items():
            marks = style.marks.split()
            rule = f"color:{style.colour or FOREGROUND}"
            rule += ";font-weight:bold" if "bold" in marks else ""
            rule += ";font-style:italic" if "italic" in marks else ""
            rule += ";opacity:.65" if "faint" in marks else ""
            lines = [word for mark, word in (("underline", "underline"), ("strike", "line-through")) if mark in marks]
            rule += f";text-decoration:{' '.join(lines)}" if lines else ""
            rules.append(f".{name}{{{rule}}}")
        return "\n".join(rules)


def _row(row: Row, styles: _Styles) -> str:
    parts = []
    for run in row:
        if run.style.background:
            left, width = _number(run.column * CELL), _number(_columns(run.text) * CELL)
            parts.append(f'<rect x="{left}" width="{width}" height="{LINE}" fill="{run.style.background}"/>')
        name = styles.name(run.style)
        for column, text in _pieces(run):
            if text[0] in ARMS:
                parts += _lines(column, text, name)
            else:
                left, width = _number(column * CELL), _number(_columns(text) * CELL)
                parts.append(
                    f'<text class="{name}" x="{left}" y="14" textLength="{width}">{escape(text, quote=False)}</text>'
                )
    return "".join(parts)


def _pieces(run: Run) -> Iterable[tuple[int, str]]:
    """Yield column and text of the parts of a run that are drawn alike: lines, or letters up to a gap."""
    column, piece = run.column, ""
    place = column
    for character in run.text:
        kind = character in ARMS
        gap = character == " " and (not piece or piece[-1] == " ")
        if piece and (kind != (piece[0] in ARMS) or (gap and not kind)):
            if piece.strip():
                yield column, piece.rstrip(" ")
            column, piece = place, ""
        if not piece and character == " ":
            column = place + 1
        else:
            piece += character
        place += _columns(character)
    if piece.strip():
        yield column, piece.rstrip(" ")


def _lines(column: int, text: str, name: str) -> Iterable[str]:
    middle = LINE / 2
    for weight, width in ((1, 1.2), (2, 3.6)):
        path = ""
        for number, character in enumerate(text):
            left, right, up, down = ARMS[character]
            start = (column + number) * CELL
            across = (0 if left == weight else CELL / 2), (CELL if right == weight else CELL / 2)
            if across[0] < across[1]:
                end = f"H{_number(start + across[1])}"
                begin = f"M{_number(start + across[0])} {middle}"
                path = (
                    path.rsplit("H", 1)[0] + end
                    if path.endswith(f"H{_number(start)}") and not across[0]
                    else path + begin + end
                )
            high, low = (0 if up == weight else middle), (LINE if down == weight else middle)
            if high < low:
                path += f"M{_number(start + CELL / 2)} {high}V{low}"
        if path:
            yield f'<path class="{name}" d="{path}" stroke-width="{width}"/>'


def _window(rows: int, columns: int, title: str, css: str, body: str, data: dict[str, object]) -> str:
    """Return a picture: a window with a title around `body`, which suits a light and a dark page."""
    width, height = _number(columns * CELL + 2 * PADDING), rows * LINE + BAR + PADDING
    stored = escape(json.dumps(data, ensure_ascii=False, separators=(",", ":")), quote=False)
    dots = "".join(f'<circle cx="{20 + 18 * number}" cy="{BAR / 2}" r="5"/>' for number in range(3))
    inside = f'width="{_number(columns * CELL + 2 * PADDING - 1)}" height="{height - 1}" rx="9"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">
<title>{escape(title)}</title>
{DATA[0]}{stored}{DATA[1]}
<style>
text{{font-family:{FONTS};font-size:{FONT_SIZE}px;fill:currentColor;white-space:pre}}
path{{stroke:currentColor;fill:none}}
.title{{color:{MUTED};font-size:13px;text-anchor:middle}}
{css}
</style>
<rect x=".5" y=".5" {inside} fill="{BACKGROUND}" stroke="{MUTED}" stroke-opacity=".45"/>
<g fill="#4a5263">{dots}</g>
<text class="title" x="50%" y="{BAR / 2 + 5}">{escape(title)}</text>
<g transform="translate({PADDING},{BAR})">
{body}
</g>
</svg>
"""


def _columns(text: str) -> int:
    from wcwidth import wcswidth

    return max(0, wcswidth(text))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
