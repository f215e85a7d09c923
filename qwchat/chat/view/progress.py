"""Progress through a known number of bytes: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from quant.units import data_size
from qwchat.chat.formatting import duration, one_line
from qwchat.chat.view.screen import Screen
from qwchat.chat.view.tail import terminal_size
from qwchat.markdown.styled_text import cell_width

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_SECONDS = 5.0
_FRAMES_PER_SECOND = 8
_MIN_BAR_COLUMNS, _MAX_BAR_COLUMNS = 8, 30
_OTHER_COLUMNS = 40  # Per cent, bytes, rate, time, and an echoed ^C: a line that wraps could not be erased.

_ERASE_BAR = "\r\x1b[2K\x1b[?25h"  # Clears the row and shows the cursor.


class ByteProgress(Protocol):
    """Progress display of a known number of bytes, shown while the context is open."""

    def __enter__(self) -> ByteProgress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, done: int, label: str) -> None:
        """Show that `done` bytes are processed and that `label` is in progress."""


def byte_progress(title: str, total: int, screen: Screen, *, rewritable: bool) -> ByteProgress:
    """Return the progress display that suits standard error; a quiet screen gets one that shows nothing."""
    if screen.quiet:
        return _NoProgress()
    return _ProgressBar(title, total, screen) if rewritable else _ProgressLines(title, total, screen)


class _NoProgress:
    def __enter__(self) -> _NoProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, done: int, label: str) -> None:
        return None


class _ProgressBar(_NoProgress):
    """Bar with bytes, rate and remaining time, erased when the context closes."""

    def __init__(self, title: str, total: int, screen: Screen) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.table import Column

        width = terminal_size(screen.stream).columns
        title = one_line(title, max(1, width - _OTHER_COLUMNS))
        bar_columns = min(_MAX_BAR_COLUMNS, width - _OTHER_COLUMNS - cell_width(title) - 1)
        bar = [BarColumn(bar_width=bar_columns)] if bar_columns >= _MIN_BAR_COLUMNS else []
        row = partial(Column, no_wrap=True)
        console = Console(file=screen.stream, no_color=not screen.styling.colour, highlight=False)
        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            *bar,
            TaskProgressColumn(table_column=row()),
            DownloadColumn(table_column=row()),
            TransferSpeedColumn(table_column=row()),
            TimeRemainingColumn(table_column=row()),
            console=console,
            transient=True,
            refresh_per_second=_FRAMES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._title, self._screen = title, screen
        self._task: TaskID = self._progress.add_task(title, total=total)

    def __enter__(self) -> _ProgressBar:
        try:
            self._progress.start()
        except BaseException:  # Ctrl-C after the bar appeared: nothing else would erase it.
            self._erase()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._progress.stop()
        else:
            self._erase()

    def _erase(self) -> None:
        """Erase the bar, even if the error occurred while Rich was drawing and left its buffer half filled."""
        self._progress.stop()
        self._screen.stream.write(_ERASE_BAR)
        self._screen.stream.flush()

    def update(self, done: int, label: str) -> None:
        self._progress.update(self._task, completed=done)


class _ProgressLines(_NoProgress):
    """One line every few seconds; nothing for short work."""

    def __init__(self, title: str, total: int, screen: Screen) -> None:
        self._title, self._total, self._screen = title, max(total, 1), screen
        self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None  # An earlier attempt may have done a part.

    def update(self, done: int, label: str) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        started, before = self._first
        rate = (done - before) / (now - started) if now > started else 0.0
        remaining = f", {duration((self._total - done) / rate)} to go" if rate > 0 else ""
        self._screen.notice(
            f"{self._title}: {100 * done // self._total} % ({data_size(done)} of {data_size(self._total)}, "
            f"{data_size(rate)}/s{remaining})"
        )
