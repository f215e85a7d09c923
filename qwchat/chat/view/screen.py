"""Standard error: notices, hints, answers to commands, figures and errors, each with its styling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TextIO

from quant.wording import Argument, ArgumentMessage, spell_out
from qwchat.characters import sanitise
from qwchat.chat.statistics import StatsFormat, statistics_line
from qwchat.chat.view.tail import terminal_size
from qwchat.chat.view.word_wrap import wrap_message
from qwchat.events import Done
from qwchat.markdown.styles import DIM, RED, Styling


class Screen:
    """Writer of whole lines to standard error. Write errors are ignored.

    Args:
        stream: Standard error.
        styling: What `stream` may show.
        quiet: Leave out notices and figures. Hints, answers and errors are still shown.
        figures: Format of the figures after a reply.
        spell: Function that spells an argument named in a message as the user types it.

    Attributes:
        spell: See above; a chat replaces it.
    """

    def __init__(
        self,
        stream: TextIO,
        styling: Styling,
        *,
        quiet: bool = False,
        figures: StatsFormat = "line",
        spell: Callable[[Argument], str] = str,
    ) -> None:
        self.stream = stream
        self.styling = styling
        self.quiet = quiet
        self.figures: StatsFormat = figures
        self.spell = spell
        self._bell_seconds: float | None = None

    def set_quiet(self, quiet: bool) -> None:
        """Turn notices and figures off or on."""
        self.quiet = quiet

    def notice(self, text: str) -> None:
        """Show something the user should know but need not act on."""
        if not self.quiet:
            self._line(ArgumentMessage("qwchat: ", text), DIM)

    def set_figures_form(self, form: StatsFormat) -> None:
        """Show figures in this format from now on."""
        self.figures = form

    def statistics(self, done: Done, *, sampled: bool) -> None:
        """Show the figures of a reply.

        Args:
            done: The end of the reply.
            sampled: Whether to show the seed, because sampling was used.
        """
        columns = terminal_size(self.stream).columns if self.styling.terminal else None
        text = statistics_line(done, sampled=sampled, form=self.figures, columns=columns)
        if text and not self.quiet:
            self._write(self.styling.styled(text, DIM) + "\n")

    def hint(self, text: str) -> None:
        """Show advice, or the response to a key."""
        self._line(text, DIM)

    def mark(self, text: str) -> None:
        """Show a change of what is sent to the model from here on."""
        self._line(text, DIM)

    def answer(self, text: str) -> None:
        """Show the answer to a command."""
        self._line(text, None)

    def verbatim(self, text: str) -> None:
        """Show text of the user or the model without wrapping its lines, so that it can be copied."""
        self._write(sanitise(text) + "\n")

    def blank_line(self) -> None:
        """Write a blank line after a turn, if the stream is a terminal."""
        if self.styling.terminal:
            self._write("\n")

    def set_bell(self, seconds: float | None) -> None:
        """Ring the bell after replies that took at least `seconds`; None turns the bell off."""
        self._bell_seconds = seconds

    def ring_bell(self, seconds: float) -> None:
        """Ring the bell if a reply that took `seconds` was slow enough."""
        if (
            self._bell_seconds is not None
            and seconds >= self._bell_seconds
            and self.styling.terminal
            and not self.quiet
        ):
            self._write("\a")

    def error(self, text: str) -> None:
        """Show an error on one line."""
        prefix = "qwchat: error:"
        line = self._wrapped(f"{prefix} {sanitise(' '.join(spell_out(text, self.spell).split()))}")
        self._write(self.styling.styled(prefix, RED) + line.removeprefix(prefix) + "\n")

    def _line(self, text: str, style: str | None) -> None:
        shown = self._wrapped(sanitise(spell_out(text, self.spell)))
        self._write((self.styling.styled(shown, style) if style else shown) + "\n")

    def _wrapped(self, text: str) -> str:
        return wrap_message(text, terminal_size(self.stream).columns) if self.styling.terminal else text

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed stream.
            self.stream.write(text)
            self.stream.flush()
