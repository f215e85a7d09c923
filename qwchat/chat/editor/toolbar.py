"""The line under the prompt: keys on the left, the context's meter on the right."""

from __future__ import annotations

from qwchat.chat.editor.toolkit import cells

KEYS = ("Enter sends", "Alt-Enter breaks the line", "Ctrl-R searches", "/help")
BLOCK = ('""" and Enter send', "Ctrl-C gives it up")
GAP = "   "


def line(keys: tuple[str, ...], right: str, columns: int) -> str:
    """As many of `keys` as fit into `columns` beside `right`, which goes before all but the first of them."""
    room = columns - 1  # Some terminals wrap behind a full line.
    first = keys[0]
    if cells(first) + len(GAP) + cells(right) > room:
        right = ""
    left = first
    for key in keys[1:]:
        longer = f"{left} · {key}"
        if cells(longer) + (len(GAP) + cells(right) if right else 0) > room:
            break
        left = longer
    if not right:
        return left
    return left + " " * (room - cells(left) - cells(right)) + right
