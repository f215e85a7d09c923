"""Line under the prompt: keys on the left, the context meter on the right."""

from __future__ import annotations

from qwchat.chat.editor.toolkit import cell_width

MESSAGE_KEYS = ("Enter sends", "Alt-Enter adds a line", "Ctrl-R searches", "/help")
BLOCK_KEYS = ('""" and Enter send', "Ctrl-C discards it")
GAP = "   "


def render(keys: tuple[str, ...], right: str, columns: int) -> str:
    """Return the toolbar, with as many `keys` as fit.

    Args:
        keys: Descriptions of keys. The first one is always shown.
        right: Text on the right; it takes precedence over all keys but the first.
        columns: Width of the terminal.
    """
    available = columns - 1  # Some terminals wrap after a full line.
    first = keys[0]
    if cell_width(first) + len(GAP) + cell_width(right) > available:
        right = ""
    left = first
    for key in keys[1:]:
        longer = f"{left} · {key}"
        if cell_width(longer) + (len(GAP) + cell_width(right) if right else 0) > available:
            break
        left = longer
    if not right:
        return left
    return left + " " * (available - cell_width(left) - cell_width(right)) + right
