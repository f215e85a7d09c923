"""SGR codes, and which of them a stream may show."""

from __future__ import annotations

from dataclasses import dataclass

BOLD, DIM, ITALIC, UNDERLINED, STRUCK, RED, CODE = "1", "2", "3", "4", "9", "31", "36"
EMPHASIS = frozenset({BOLD, DIM, ITALIC, UNDERLINED, STRUCK})


@dataclass(frozen=True)
class Styling:
    """Styling that a stream may use.

    Attributes:
        terminal: Whether the stream is a terminal.
        emphasis: Whether bold, dim and the like are allowed.
        colour: Whether colours are allowed.
    """

    terminal: bool
    emphasis: bool
    colour: bool

    def styled(self, text: str, code: str) -> str:
        """Return `text` in the SGR style `code` (BOLD, DIM, RED …) if this styling allows it."""
        allowed = self.emphasis if code in EMPHASIS else self.colour
        return f"\x1b[{code}m{text}\x1b[0m" if allowed and text else text


PLAIN = Styling(terminal=False, emphasis=False, colour=False)
