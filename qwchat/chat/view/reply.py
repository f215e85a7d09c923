"""Write replies to standard output: verbatim to a pipe or a file, as Markdown or as safe text on a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from qwchat.characters import StreamSanitiser
from qwchat.chat.display import Rendering
from qwchat.chat.view import clipboard
from qwchat.chat.view.tail import FrameLimiter, LiveTail, TerminalSize, reflows, terminal_size
from qwchat.markdown.styles import Styling

if TYPE_CHECKING:
    from qwchat.markdown.block_renderer import RenderOptions

_MAX_WAITS = 6  # Of at most 0.3 s each.


class ReplyView:
    """View that writes one reply after another to `out`.

    On a terminal with styles, Markdown is rendered while it streams: finished rows are printed once, and a short tail
    below them is redrawn at most 15 times a second. Plain text is written as it arrives. Control characters in a reply
    are made visible. If `out` is neither a terminal nor styled, the text is written verbatim.

    Frames are drawn inside `write` and `end`.

    Args:
        out: Standard output.
        styling: What `out` may show.
        rendering: "markdown" or "plain".
        live: Whether the terminal can redraw rows. If not, each row is printed once it is final.
        clock: Clock in seconds, used to limit the frame rate.
        pause: Sleep function, used at the end of a reply while the window is being resized.
        size: Function that returns the size of the terminal.
    """

    def __init__(
        self,
        out: TextIO,
        styling: Styling,
        rendering: Rendering = "markdown",
        *,
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        size: Callable[[TextIO], TerminalSize] = terminal_size,
    ) -> None:
        self._out = out
        self._styling = styling
        self._rendering: Rendering = rendering
        self._live = live and styling.terminal
        self._clock = clock
        self._pause = pause
        self._size = size
        self._verbatim = not (styling.terminal or styling.emphasis or styling.colour)
        self._pieces: list[str] = []
        self._ended = True
        self._writer: _PlainWriter | _MarkdownWriter = self._new_writer()

    @property
    def rendering(self) -> Rendering:
        """How replies are shown."""
        return self._rendering

    def set_rendering(self, rendering: Rendering) -> None:
        """Show replies in this way, starting with the next one."""
        self._rendering = rendering

    @property
    def is_terminal(self) -> bool:
        """Whether replies go to a terminal, where a reply can be shown again."""
        return self._styling.terminal

    @property
    def last_reply(self) -> str:
        """Text of the current reply, or of the last one, as the model wrote it."""
        return "".join(self._pieces)

    @property
    def last_code_blocks(self) -> list[str]:
        """Fenced code blocks of the last reply, verbatim. The first one is number 1 on the screen."""
        return code_blocks(self.last_reply)

    def resume(self, printed: str) -> None:
        """Continue a reply whose first part is on the screen already.

        Args:
            printed: The part on the screen; a code block at its end stays open.
        """
        self._pieces, self._ended = [printed], False
        self._writer = self._new_writer()
        self._writer.resume(printed)

    def copy(self, text: str) -> bool:
        """Copy `text` to the terminal's clipboard. Return False if replies do not go to a terminal that can do this."""
        if not self._styling.terminal or os.environ.get("TERM", "") in ("dumb", ""):
            return False
        clipboard.copy(self._out, text)
        return True

    def copy_advice(self, text: str) -> str:
        """Return why the terminal may refuse `text`, or "" if there is no known reason."""
        return clipboard.copy_advice(text)

    def code_blocks(self, text: str) -> list[str]:
        """Return the contents of the fenced code blocks in `text`. The first one is number 1 on the screen."""
        return code_blocks(text)

    def write(self, text: str) -> None:
        """Show the next piece of the reply."""
        if not text:
            return
        if self._ended:
            self._pieces, self._ended = [], False
            self._writer = self._new_writer()
        self._pieces.append(text)
        self._writer.write(text)

    def end(self, full_text: str | None = None) -> None:
        """End the reply with a newline. On a terminal, a reply that ends with a newline gets no second one.

        Args:
            full_text: Text of the reply if it differs from the pieces written: a reply continued after a stop repeats
                text that was already shown.
        """
        if self._ended:
            self._pieces, self._writer = [], self._new_writer()
        if full_text is not None:
            self._pieces = [full_text]
        self._ended = True
        self._writer.end()

    def detach(self) -> None:
        """Leave the rows on the screen as they are: another program wrote to the terminal during the reply."""
        self._writer.detach()

    def _new_writer(self) -> _PlainWriter | _MarkdownWriter:
        if self._rendering == "markdown" and (self._styling.emphasis or self._styling.colour):
            return _MarkdownWriter(self._out, self._styling, self._live, self._clock, self._pause, self._size)
        return _PlainWriter(self._out, verbatim=self._verbatim, always_newline=not self._styling.terminal)


def code_blocks(text: str) -> list[str]:
    """Return the contents of the fenced code blocks in `text`, each line with its newline."""
    from qwchat.markdown.block_renderer import RenderOptions
    from qwchat.markdown.stream_parser import StreamParser

    parser = StreamParser(RenderOptions(width=None, tail_rows=1, colour=False))
    parser.push(text.replace("\r\n", "\n"))
    parser.end()
    return list(parser.code_blocks)


class _NewlineNormaliser:
    """Converter of CR LF to LF that also works if a piece ends between the two."""

    def __init__(self) -> None:
        self._pending = ""

    def push(self, text: str) -> str:
        text = self._pending + text
        self._pending = "\r" if text.endswith("\r") else ""
        return text.removesuffix("\r").replace("\r\n", "\n")

    def end(self) -> str:
        pending, self._pending = self._pending, ""
        return pending


class _PlainWriter:
    """Writer of replies as plain text."""

    def __init__(self, out: TextIO, *, verbatim: bool, always_newline: bool) -> None:
        self._out = out
        self._verbatim = verbatim
        self._always_newline = always_newline
        self._newlines, self._harmless = _NewlineNormaliser(), StreamSanitiser()
        self._last_character = "\n"

    def resume(self, printed: str) -> None:
        self._last_character = "\n"

    def write(self, text: str) -> None:
        self._emit(text if self._verbatim else self._harmless.push(self._newlines.push(text)))

    def end(self) -> None:
        rest = self._harmless.push(self._newlines.end())
        self._emit(rest + ("\n" if self._always_newline or (rest or self._last_character) != "\n" else ""))

    def detach(self) -> None:
        pass  # Plain text is never redrawn.

    def _emit(self, text: str) -> None:
        if text:
            self._last_character = text[-1]
            self._out.write(text)
            self._out.flush()


class _MarkdownWriter:
    """Writer of replies as rendered Markdown, with a live tail if `live`."""

    def __init__(
        self,
        out: TextIO,
        styling: Styling,
        live: bool,
        clock: Callable[[], float],
        pause: Callable[[float], None],
        size: Callable[[TextIO], TerminalSize],
    ) -> None:
        from qwchat.markdown.stream_parser import StreamParser  # Imported late: plain replies do not need it.

        self._out = out
        self._terminal_size = size
        self._terminal = styling.terminal
        self._colour = styling.colour
        self._newlines, self._harmless = _NewlineNormaliser(), StreamSanitiser()
        self._parser = StreamParser(self._options(size(out)))
        self._tail = LiveTail(out, reflowing=reflows()) if live else None
        self._limiter = FrameLimiter(clock)
        self._pause = pause

    def resume(self, printed: str) -> None:
        self._parser.push(self._harmless.push(self._newlines.push(printed)))
        self._parser.resume()

    def write(self, text: str) -> None:
        size = self._terminal_size(self._out)
        self._parser.options = self._options(size)
        self._parser.push(self._harmless.push(self._newlines.push(text)))
        if self._tail is None:
            self._print()
        elif self._limiter.may_draw(size):
            self._tail.draw(self._parser.take_rows(), self._parser.preview(), size)

    def end(self) -> None:
        size = self._settled_size()
        self._parser.options = self._options(size)
        self._parser.push(self._harmless.push(self._newlines.end()))
        self._parser.end()
        if self._tail is not None:
            self._tail.draw(self._parser.take_rows(), (), size)
        else:
            self._print()

    def detach(self) -> None:
        if self._tail is not None:
            self._tail.detach()

    def _settled_size(self) -> TerminalSize:
        """Return the size of the terminal once it is stable, or after a short wait."""
        size = self._terminal_size(self._out)
        for _ in range(_MAX_WAITS):
            seconds = self._limiter.seconds_until_settled(size)
            if not seconds:
                break
            self._pause(seconds)
            size = self._terminal_size(self._out)
        return size

    def _options(self, size: TerminalSize) -> RenderOptions:
        from qwchat.markdown.block_renderer import RenderOptions

        return RenderOptions(size.columns if self._terminal else None, size.tail_rows, self._colour)

    def _print(self) -> None:
        text = "".join(row.to_ansi() + "\n" for row in self._parser.take_rows())
        if text:
            self._out.write(text)
            self._out.flush()
