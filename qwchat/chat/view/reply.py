"""Where a reply is written: byte for byte into a pipe or a file, as Markdown or as harmless text on a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from qwchat.characters import Harmless
from qwchat.chat.display import Rendering
from qwchat.chat.view import clipboard
from qwchat.chat.view.live import Live, Pace, Size, reflows, terminal_size
from qwchat.markdown.styles import Styling

if TYPE_CHECKING:
    from qwchat.markdown.block_renderer import RenderOptions

_MOST_WAITS = 6  # Each for 0.3 s at most.


class ReplyView:
    """Writes one reply after another to `out`.

    On a terminal that can show styles, Markdown is rendered as it streams: finished rows are printed once, and a short
    tail below them is redrawn, at most 15 times a second. Plain text is written as it comes. Control characters in a
    reply are made visible. Where `out` is neither a terminal nor styled, the text is written as it is.

    Frames are drawn inside `write` and `end`.

    Args:
        out: standard output.
        look: what `out` can show.
        rendering: "markdown" or "plain".
        live: whether a terminal can draw over rows; without that each is printed when it is certain.
        clock: seconds, to count frames.
        pause: waits for so many seconds, at the end of a reply in a window whose size is changing.
        size: asks for the size of the terminal.
    """

    def __init__(
        self,
        out: TextIO,
        look: Styling,
        rendering: Rendering = "markdown",
        *,
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        size: Callable[[TextIO], Size] = terminal_size,
    ) -> None:
        self._out = out
        self._look = look
        self._rendering: Rendering = rendering
        self._live = live and look.terminal
        self._clock = clock
        self._pause = pause
        self._size = size
        self._verbatim = not (look.terminal or look.emphasis or look.colour)
        self._said: list[str] = []
        self._ended = True
        self._show: _Plain | _Rendered = self._begin()

    @property
    def rendering(self) -> Rendering:
        """How replies are shown."""
        return self._rendering

    def set_rendering(self, rendering: Rendering) -> None:
        """Show replies in this way, from the next one on."""
        self._rendering = rendering

    @property
    def watched(self) -> bool:
        """Whether replies go to a terminal, where one can be shown again."""
        return self._look.terminal

    @property
    def last(self) -> str:
        """The text of the reply in hand, or of the last one, as the model wrote it."""
        return "".join(self._said)

    @property
    def blocks(self) -> list[str]:
        """Its fenced code blocks, verbatim; the first has the number 1 on the screen."""
        return code_blocks(self.last)

    def resume(self, said: str) -> None:
        """The next reply goes on with `said`, which is on the screen already: a code block in it is still open."""
        self._said, self._ended = [said], False
        self._show = self._begin()
        self._show.resume(said)

    def copy(self, text: str) -> bool:
        """Put `text` into the terminal's clipboard; False where replies go to no terminal that could."""
        if not self._look.terminal or os.environ.get("TERM", "") in ("dumb", ""):
            return False
        clipboard.copy(self._out, text)
        return True

    def copy_advice(self, text: str) -> str:
        """Return what may keep the terminal from taking `text`; empty where nothing is known to."""
        return clipboard.advice(text)

    def code_blocks(self, text: str) -> list[str]:
        """Return the contents of the fenced code blocks in `text`; the first has the number 1 on the screen."""
        return code_blocks(text)

    def write(self, text: str) -> None:
        """Show the next piece of the reply."""
        if not text:
            return
        if self._ended:
            self._said, self._ended = [], False
            self._show = self._begin()
        self._said.append(text)
        self._show.write(text)

    def end(self, whole: str | None = None) -> None:
        """End the reply with its newline (on a terminal only where the reply did not end with one itself).

        `whole`: its text, where that is not the sum of what was written: a reply that goes on after a stop repeats
        what had been held back, and was shown then.
        """
        if self._ended:
            self._said, self._show = [], self._begin()
        if whole is not None:
            self._said = [whole]
        self._ended = True
        self._show.end()

    def moved(self) -> None:
        """Another program wrote to the terminal in the middle of a reply: what was drawn is not touched again."""
        self._show.moved()

    def _begin(self) -> _Plain | _Rendered:
        if self._rendering == "markdown" and (self._look.emphasis or self._look.colour):
            return _Rendered(self._out, self._look, self._live, self._clock, self._pause, self._size)
        return _Plain(self._out, verbatim=self._verbatim, one_newline=not self._look.terminal)


def code_blocks(text: str) -> list[str]:
    """The contents of the fenced code blocks in `text`, each line with its newline."""
    from qwchat.markdown.block_renderer import RenderOptions
    from qwchat.markdown.stream_parser import StreamParser

    parser = StreamParser(RenderOptions(width=None, tail_rows=1, colour=False))
    parser.push(text.replace("\r\n", "\n"))
    parser.end()
    return list(parser.code_blocks)


class _Newlines:
    """Makes one newline of CR LF, also where a piece ends between the two."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return text.removesuffix("\r").replace("\r\n", "\n")

    def end(self) -> str:
        held, self._held = self._held, ""
        return held


class _Plain:
    """Text as it comes."""

    def __init__(self, out: TextIO, *, verbatim: bool, one_newline: bool) -> None:
        self._out = out
        self._verbatim = verbatim
        self._one_newline = one_newline
        self._newlines, self._harmless = _Newlines(), Harmless()
        self._last = "\n"

    def resume(self, said: str) -> None:
        self._last = "\n"

    def write(self, text: str) -> None:
        self._put(text if self._verbatim else self._harmless.push(self._newlines.push(text)))

    def end(self) -> None:
        rest = self._harmless.push(self._newlines.end())
        self._put(rest + ("\n" if self._one_newline or (rest or self._last) != "\n" else ""))

    def moved(self) -> None:
        pass  # Nothing is drawn over.

    def _put(self, text: str) -> None:
        if text:
            self._last = text[-1]
            self._out.write(text)
            self._out.flush()


class _Rendered:
    """Markdown, with a live tail where `live`."""

    def __init__(
        self,
        out: TextIO,
        look: Styling,
        live: bool,
        clock: Callable[[], float],
        pause: Callable[[float], None],
        size: Callable[[TextIO], Size],
    ) -> None:
        from qwchat.markdown.stream_parser import StreamParser  # A reply that is not rendered does not wait for it.

        self._out = out
        self._ask_size = size
        self._terminal = look.terminal
        self._colour = look.colour
        self._newlines, self._harmless = _Newlines(), Harmless()
        self._parser = StreamParser(self._options(size(out)))
        self._live = Live(out, reflowing=reflows()) if live else None
        self._pace = Pace(clock)
        self._pause = pause

    def resume(self, said: str) -> None:
        self._parser.push(self._harmless.push(self._newlines.push(said)))
        self._parser.resume()

    def write(self, text: str) -> None:
        size = self._ask_size(self._out)
        self._parser.options = self._options(size)
        self._parser.push(self._harmless.push(self._newlines.push(text)))
        if self._live is None:
            self._print()
        elif self._pace.due(size):
            self._live.frame(self._parser.take_rows(), self._parser.preview(), size)

    def end(self) -> None:
        size = self._settled_size()
        self._parser.options = self._options(size)
        self._parser.push(self._harmless.push(self._newlines.end()))
        self._parser.end()
        if self._live is not None:
            self._live.frame(self._parser.take_rows(), (), size)
        else:
            self._print()

    def moved(self) -> None:
        if self._live is not None:
            self._live.moved()

    def _settled_size(self) -> Size:
        """The size of the terminal, when it has stopped changing; no longer waited for than a moment."""
        size = self._ask_size(self._out)
        for _ in range(_MOST_WAITS):
            seconds = self._pace.unsettled(size)
            if not seconds:
                break
            self._pause(seconds)
            size = self._ask_size(self._out)
        return size

    def _options(self, size: Size) -> RenderOptions:
        from qwchat.markdown.block_renderer import RenderOptions

        return RenderOptions(size.columns if self._terminal else None, size.tail_rows, self._colour)

    def _print(self) -> None:
        text = "".join(row.to_ansi() + "\n" for row in self._parser.take_rows())
        if text:
            self._out.write(text)
            self._out.flush()
