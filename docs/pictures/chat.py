"""Draws docs/pictures/chat.svg: a conversation with the embedded model, as the terminal showed it.

    python -m docs.pictures.chat

The program runs in a pseudo-terminal, keys are typed into it, and what a terminal emulator then holds becomes the
picture: nothing in it was written by hand.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROWS, COLUMNS = 44, 108
SEED = "4"
KEYS = (
    "What can you do?\r",
    "How do I convert a model?\r",
    "What is 7 + 8?\r",
)
PICTURE = Path(__file__).with_suffix(".svg")
PATIENCE_SECONDS = 120.0
QUIET_SECONDS = 1.0
PROGRAM = "from qwchat.cli.main import main; main()"

# Rich's own template loads a font from the web; this one asks for none.
TEMPLATE = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
COLOURS = {"brown": "yellow", "brightblack": "#8a8a8a", "brightbrown": "bright_yellow"}
WHERE = b"\x1b[6n"  # how a program asks a terminal where its cursor is
FAINT, GREY = b"\x1b[2m", b"\x1b[90m"  # The emulator knows no faint letters.


def conversation() -> pyte.Screen:
    """Run the program, type the keys, and return the screen."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    process = pexpect.spawn(
        sys.executable,
        ["-c", PROGRAM, "chat", "--no-save", "--seed", SEED, "--temp", "0"],
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        dimensions=(ROWS, COLUMNS),
    )
    process.delaybeforesend = None

    def settle() -> None:
        """Read until the prompt stands there and nothing more comes."""
        end = time.monotonic() + PATIENCE_SECONDS
        quiet = time.monotonic()
        while time.monotonic() < end:
            try:
                data = process.read_nonblocking(65536, 0.1)
            except pexpect.TIMEOUT:
                prompted = any(re.match(r"> ?$", line.rstrip()) for line in screen.display)
                if prompted and time.monotonic() - quiet > QUIET_SECONDS:
                    return
                continue
            quiet = time.monotonic()
            for number, part in enumerate(data.replace(FAINT, GREY).split(WHERE)):
                if number:
                    process.send(f"\x1b[{screen.cursor.y + 1};{screen.cursor.x + 1}R")
                stream.feed(part)
        shown = "\n".join(screen.display)
        raise TimeoutError(f"the program did not come back to its prompt; the screen shows\n{shown}")

    settle()
    for keys in KEYS:
        process.send(keys)
        settle()
    process.close(force=True)
    return screen


def lines_of(screen: pyte.Screen) -> list[Text]:
    """The rows of the screen up to the last one with anything on it."""
    rows = []
    for number in range(ROWS):
        row, text = screen.buffer[number], Text()
        for column in range(COLUMNS):
            cell = row[column]
            text.append(cell.data, style_of(cell))
        text.rstrip()
        rows.append(text)
    while rows and not rows[-1].plain:
        rows.pop()
    return rows


def style_of(cell: pyte.screens.Char) -> Style:
    """The style of one cell of the emulator as Rich has it."""

    def colour(name: str) -> str | None:
        if name == "default":
            return None
        if re.fullmatch(r"[0-9a-f]{6}", name):
            return f"#{name}"
        return COLOURS.get(name, name.replace("bright", "bright_"))

    return Style(
        color=colour(cell.fg), bold=cell.bold, italic=cell.italics, underline=cell.underscore, reverse=cell.reverse
    )


def main() -> None:
    """Draw the picture."""
    rows = lines_of(conversation())
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        for row in rows:
            console.print(row, no_wrap=True, crop=True)
        svg = console.export_svg(title="qwchat", theme=MONOKAI, code_format=TEMPLATE, unique_id="chat")
    PICTURE.write_text(svg, encoding="utf-8")
    print(f"{PICTURE}: {len(rows)} rows")


if __name__ == "__main__":
    main()
