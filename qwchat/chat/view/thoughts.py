"""Show the thoughts of a reasoning model on standard error, apart from its answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

from qwchat.characters import StreamSanitiser, sanitise
from qwchat.chat.formatting import duration, token_count
from qwchat.chat.view.screen import Screen
from qwchat.chat.view.tail import FrameLimiter, LiveTail, TerminalSize, reflows, terminal_size
from qwchat.markdown.styled_text import StyledRow, wrap_segments
from qwchat.markdown.styles import DIM

ThoughtMode = Literal["fold", "show", "hide", "off"]
_MAX_ROWS = 6
_MAX_CHARACTERS = 4000  # At the end of a thought; more never fit into the rows.


class ThoughtView:
    """View of one thought after another.

    - `fold` shows the last rows while the model thinks. One line that says how long it thought replaces them.
    - `show` writes the whole thought, dimmed on a terminal.
    - `hide` and `off` say `thinking…` until the answer begins.

    Only `show` writes to a stream that is not a terminal. `toggle` changes to `show` or back for the current thought.

    Args:
        screen: Standard error.
        mode: See above.
        live: Whether the terminal can redraw rows.
        advice: What `fold` adds to its line.
        clock: Clock in seconds.
        size: Function that returns the size of the terminal.

    Attributes:
        mode: See above; it can be changed between replies.
    """

    def __init__(
        self,
        screen: Screen,
        mode: ThoughtMode = "fold",
        *,
        live: bool,
        advice: str = "",
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[TextIO], TerminalSize] = terminal_size,
    ) -> None:
        self.mode: ThoughtMode = mode
        self._screen, self._stream, self._advice, self._clock, self._size = screen, screen.stream, advice, clock, size
        self._style = DIM if screen.styling.emphasis else ""
        self._live = live
        self._reset()

    def _reset(self) -> None:
        self._started: float | None = None
        self._tokens = 0
        self._text = ""
        self._toggled = False
        self._tail: LiveTail | None = None
        self._limiter = FrameLimiter(self._clock)
        self._harmless = StreamSanitiser()

    def write(self, text: str, tokens: int) -> None:
        """Add the next piece of the thought, which `tokens` tokens were generated for."""
        self._started = self._clock() if self._started is None else self._started
        self._tokens += tokens
        if not text:
            return
        self._text += text
        if self._shows_all:
            self._write_dimmed(text)
        elif self._live and not self._screen.quiet:
            self._draw_tail()

    def end(self, *, stopped: bool = False) -> None:
        """End the thought, because the answer begins or the reply ends. Do nothing without a thought.

        Args:
            stopped: Whether the user stopped the reply within the thought.
        """
        if self._started is None:
            return
        seconds, tokens, text = self._clock() - self._started, self._tokens, self._text
        shows_all = self._shows_all
        if self._tail is not None:
            self._draw(self._tail, ())
        self._reset()
        if not text:
            return
        if shows_all:
            self._write("\n" if text.endswith("\n") else "\n\n" if self._screen.styling.terminal else "\n")
        elif self.mode in ("fold", "show") and not stopped and self._screen.styling.terminal and not self._screen.quiet:
            self._screen.hint(f"thought for {duration(seconds)}, {token_count(tokens)}{self._advice}")

    def toggle(self) -> bool:
        """Show the whole thought that is being generated, or stop showing it. Return False if there is no thought."""
        if self._started is None:
            return False
        if self._shows_all:
            self._write("" if self._text.endswith("\n") else "\n")
        elif self._tail is not None:
            self._draw(self._tail, ())
            self._tail = None
        self._toggled = not self._toggled
        if self._shows_all:
            self._harmless = StreamSanitiser()
            self._write_dimmed(self._text)
        return True

    def rows(self, thought: str, columns: int) -> list[str]:
        """Return a finished thought as rows of a terminal, dimmed."""
        segments = [(sanitise(thought), self._style)]
        return [row.to_ansi() for row in wrap_segments(segments, columns, strict=True)] if thought else []

    @property
    def _shows_all(self) -> bool:
        return (self.mode == "show") != self._toggled

    def detach(self) -> None:
        """Leave the rows on the screen as they are: another program wrote to the terminal during the reply."""
        if self._tail is not None:
            self._tail.detach()

    def _draw_tail(self) -> None:
        size = self._size(self._stream)
        first = self._tail is None
        if self._tail is None:
            self._tail = LiveTail(self._stream, reflowing=reflows())
        if self.mode in ("fold", "show"):
            if self._limiter.may_draw(size):
                rows = wrap_segments(
                    [(sanitise(self._text[-_MAX_CHARACTERS:]), self._style)], size.columns, strict=True
                )
                self._draw(self._tail, rows[-min(_MAX_ROWS, size.tail_rows) :])
        elif first:
            self._draw(self._tail, [StyledRow((("thinking…", self._style),))])

    def _draw(self, tail: LiveTail, rows: Sequence[StyledRow]) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed stream.
            tail.draw((), rows, self._size(self._stream))

    def _write_dimmed(self, text: str) -> None:
        shown = self._harmless.push(text) if self._screen.styling.terminal else text
        self._write(self._screen.styling.styled(shown, DIM))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


@dataclass(frozen=True)
class ThoughtSwitch:
    """What a key of the editor does with thoughts.

    Attributes:
        view: shows the thought that is being generated.
        last_thought: returns the thought of the last reply, or "" if it has none.
    """

    view: ThoughtView
    last_thought: Callable[[], str]

    def toggle(self) -> bool:
        """Show or fold the thought that is being generated. Return False without such a thought."""
        return self.view.toggle()

    def last_rows(self, columns: int) -> list[str]:
        """Return the last thought as rows of a terminal; none without a thought."""
        return self.view.rows(self.last_thought(), columns)
