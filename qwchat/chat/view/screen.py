"""Standard error: notices, hints, answers to commands, figures and errors, each with its look."""

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
    """Writes whole lines to `stream`. A stream that cannot be written is not worth failing for.

    Args:
        stream: standard error.
        styling: what it can show.
        quiet: leave out notices and statistics; hints, answers and errors stay.
        figures: the form of the statistics.

    Attributes:
        spell: how arguments that messages mention are spelt here; a chat changes it.
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
        """Leave out notices and statistics from now on, or show them again."""
        self.quiet = quiet

    def notice(self, text: str) -> None:
        """Something worth knowing that needs no action."""
        if not self.quiet:
            self._line(ArgumentMessage("qwchat: ", text), DIM)

    def set_figures_form(self, form: StatsFormat) -> None:
        """Show statistics in this form from now on."""
        self.figures = form

    def statistics(self, done: Done, *, sampled: bool) -> None:
        """The figures of a reply; `sampled`: with the seed, which played a part."""
        columns = terminal_size(self.stream).columns if self.styling.terminal else None
        text = statistics_line(done, sampled=sampled, form=self.figures, columns=columns)
        if text and not self.quiet:
            self._write(self.styling.styled(text, DIM) + "\n")

    def hint(self, text: str) -> None:
        """The answer to a key, or advice."""
        self._line(text, DIM)

    def mark(self, text: str) -> None:
        """Something that must not pass unseen, and changes what is said from here on."""
        self._line(text, DIM)

    def answer(self, text: str) -> None:
        """The answer to a command."""
        self._line(text, None)

    def verbatim(self, text: str) -> None:
        """What somebody wrote, its lines as long as they are, so that they can be copied."""
        self._write(sanitise(text) + "\n")

    def blank_line(self) -> None:
        """Write a blank line behind a turn, where a person reads the screen."""
        if self.styling.terminal:
            self._write("\n")

    def set_bell(self, seconds: float | None) -> None:
        """Ring the bell after replies that took so long; None for never."""
        self._bell_seconds = seconds

    def ring_bell(self, seconds: float) -> None:
        """Call a person who may be looking elsewhere, where a reply took `seconds`."""
        if (
            self._bell_seconds is not None
            and seconds >= self._bell_seconds
            and self.styling.terminal
            and not self.quiet
        ):
            self._write("\a")

    def error(self, text: str) -> None:
        """What went wrong, on one line."""
        prefix = "qwchat: error:"
        line = self._wrapped(f"{prefix} {sanitise(' '.join(spell_out(text, self.spell).split()))}")
        self._write(self.styling.styled(prefix, RED) + line.removeprefix(prefix) + "\n")

    def _line(self, text: str, style: str | None) -> None:
        shown = self._wrapped(sanitise(spell_out(text, self.spell)))
        self._write((self.styling.styled(shown, style) if style else shown) + "\n")

    def _wrapped(self, text: str) -> str:
        return wrap_message(text, terminal_size(self.stream).columns) if self.styling.terminal else text

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed.
            self.stream.write(text)
            self.stream.flush()
