"""Picker of one item from a list, with a search that updates at every key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TextIO, TypeVar

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, VerticalAlign, Window
from prompt_toolkit.layout.processors import BeforeInput
from prompt_toolkit.output import ColorDepth, Output, create_output

from qwchat.chat.editor.keyboard import ESCAPE_SECONDS
from qwchat.markdown.styles import Styling

Item = TypeVar("Item")

MAX_ROWS = 10


def pick(items: Sequence[Item], describe: Callable[[Item], str], *, terminal: TextIO, styling: Styling) -> Item | None:
    """Return the item that the user chooses, or None.

    Arrow and page keys move. Each typed word must occur in a row. Enter chooses the selected row; Esc and Ctrl-C
    cancel. The list is erased at the end.

    Args:
        items: The items, likeliest first.
        describe: Function that returns one line about an item, which is searched too.
        terminal: Where keys come from.
        styling: What may be drawn.
    """
    rows = [" ".join(describe(item).split()) for item in items]
    colour_depth = None if styling.colour else ColorDepth.DEPTH_1_BIT
    chosen = Picker(rows, create_input(terminal), create_output(always_prefer_tty=True), colour_depth).run()
    return None if chosen is None else items[chosen]


def matching_rows(rows: Iterable[str], typed: str) -> list[int]:
    """Return the numbers of the `rows` that contain every word of `typed`, ignoring case."""
    words = typed.casefold().split()
    return [number for number, row in enumerate(rows) if all(word in row.casefold() for word in words)]


class Picker:
    """List on the screen.

    Args:
        rows: One line for each item; control characters are made visible.
        keys: Where keys come from.
        screen: Where the list is drawn.
        colour_depth: Number of colours; None uses what the terminal offers.
    """

    def __init__(
        self, rows: Sequence[str], keys: Input, screen: Output, colour_depth: ColorDepth | None = None
    ) -> None:
        self._rows = rows
        self._selected = 0
        self._search = Buffer(multiline=False, on_text_changed=self._update_matches)
        self._matches = matching_rows(rows, "")
        search = BufferControl(self._search, [BeforeInput("Search: ")])
        layout = HSplit(
            [
                Window(search, height=1),
                Window(FormattedTextControl(self._list), dont_extend_height=True),
                Window(FormattedTextControl(self._footer), height=1),
            ],
            align=VerticalAlign.TOP,
        )
        self._application: Application[int | None] = Application(
            Layout(layout, focused_element=search),
            key_bindings=self._bindings(),
            erase_when_done=True,
            color_depth=colour_depth,
            input=keys,
            output=screen,
        )
        self._application.ttimeoutlen = self._application.timeoutlen = ESCAPE_SECONDS

    def run(self) -> int | None:
        """Show the list and return the number of the chosen row, or None."""
        return self._application.run()

    def _update_matches(self, _: Buffer) -> None:
        self._matches = matching_rows(self._rows, self._search.text)
        self._selected = 0

    def _list(self) -> StyleAndTextTuples:
        visible = max(1, min(MAX_ROWS, self._application.output.get_size().rows - 3))
        first = max(0, min(self._selected - visible // 2, len(self._matches) - visible))
        shown: StyleAndTextTuples = []
        for place in range(first, min(first + visible, len(self._matches))):
            chosen = place == self._selected
            row = f"{'>' if chosen else ' '} {self._rows[self._matches[place]]}"
            shown.append(("bold" if chosen else "", row if not shown else f"\n{row}"))
        return shown or [("", "  no matches")]

    def _footer(self) -> str:
        return f"{len(self._matches):,} of {len(self._rows):,} · Enter chooses · Esc cancels"

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()

        def bind_move(key: str, by: int) -> None:
            @keys.add(key)
            def move(event: KeyPressEvent) -> None:
                self._selected = max(0, min(self._selected + by, len(self._matches) - 1))

        for key, by in (
            ("up", -1),
            ("c-p", -1),
            ("down", 1),
            ("c-n", 1),
            ("pageup", -MAX_ROWS),
            ("pagedown", MAX_ROWS),
        ):
            bind_move(key, by)

        @keys.add("enter")
        def take(event: KeyPressEvent) -> None:
            if self._matches:
                event.app.exit(result=self._matches[self._selected])

        @keys.add("escape", eager=True)
        @keys.add("c-c")
        @keys.add("c-d")
        def leave(event: KeyPressEvent) -> None:
            event.app.exit(result=None)

        return keys
