"""Progress of the one-time setup: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType

from qwchat.chat.formatting import duration
from qwchat.chat.view.prefill_status import ERASE_LINE, clip_to_terminal
from qwchat.chat.view.screen import Screen
from qwchat.markdown.styles import DIM

_FRAME_SECONDS = 0.25
_LINE_SECONDS = 5.0
_BAR_COLUMNS = 20
# A stage that takes longer than estimated stops at this share.
_MAX_STAGE_SHARE = 0.97


class SetupStatus:
    """Progress of the one-time setup, shown while the context is open.

    It shows `one-time setup: [#######.............] 35 %, 12 s to go: compiling forward`. The remaining time is
    extrapolated from this run: the costs of the finished stages and the seconds they took.

    Args:
        screen: Standard error; a quiet screen shows nothing.
        rewritable: Whether a line can be redrawn. If not, a line is written every five seconds.
        clock: Clock in seconds; tests pass their own.
    """

    def __init__(self, screen: Screen, *, rewritable: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen, self._rewritable, self._clock = screen, rewritable, clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="qwchat-setup", daemon=True)
        self._line_shown = False
        self._stage_name = ""
        self._expected_cost = self._done_cost = self._measured_seconds = 0.0
        self._stage_cost = 0.0
        self._stage_share: float | None = None
        self._stage_began = self._last_line = clock()

    def __enter__(self) -> SetupStatus:
        if not self._screen.quiet:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with self._lock:
            self._erase()

    def expect(self, cost: float) -> None:
        """Expect this much more work after the current stage, in the unit of all costs."""
        self._expected_cost = self._done_cost + self._stage_cost + cost

    def stage(self, name: str, cost: float) -> None:
        """Finish the current stage and begin stage `name`, which costs `cost` of the expected work."""
        with self._lock:
            self._finish_stage()
            self._stage_name, self._stage_cost = name, cost
        self.draw()

    def advance(self, share: float) -> None:
        """Set how much of the current stage is done, from 0 to 1."""
        self._stage_share = share

    def wait(self, text: str) -> None:
        """Report that another process does the work. Time is not measured until the next stage."""
        with self._lock:
            self._finish_stage()
            self._stage_name = ""
            self._erase()
            self._screen.notice(text)

    def draw(self) -> None:
        """Show the current progress."""
        with self._lock:
            if self._stage_name and not self._ended.is_set() and not self._screen.quiet:
                if self._rewritable:
                    self._draw_bar()
                elif self._clock() - self._last_line >= _LINE_SECONDS:
                    self._last_line = self._clock()
                    self._screen.notice(f"one-time setup: {self._figures()}")

    def _finish_stage(self) -> None:
        now = self._clock()
        if self._stage_cost:
            self._done_cost += self._stage_cost
            self._measured_seconds += now - self._stage_began
        self._stage_began, self._stage_cost, self._stage_share = now, 0.0, None

    def _position(self) -> tuple[float, float]:
        """Return the work done and the seconds it took, with an estimate for the current stage."""
        elapsed = self._clock() - self._stage_began if self._stage_cost else 0.0
        if self._stage_share is not None:
            return self._done_cost + self._stage_share * self._stage_cost, self._measured_seconds + elapsed
        if not self._measured_seconds:
            return self._done_cost, self._measured_seconds
        estimate = min(elapsed * self._done_cost / self._measured_seconds, _MAX_STAGE_SHARE * self._stage_cost)
        return self._done_cost + estimate, self._measured_seconds + elapsed

    def _figures(self) -> str:
        done, seconds = self._position()
        total = max(self._expected_cost, done)
        text = f"{int(100 * done / total) if total else 0} %"
        if done and seconds:
            text += f", {duration(max(1.0, (total - done) * seconds / done))} to go"
        return f"{text}: {self._stage_name}"

    def _draw_bar(self) -> None:
        done, _ = self._position()
        filled = int(_BAR_COLUMNS * done / max(self._expected_cost, done, 1e-9))
        line = f"one-time setup: [{'#' * filled}{'.' * (_BAR_COLUMNS - filled)}] {self._figures()}"
        self._line_shown = True  # Set before drawing: Ctrl-C in between must erase the line too.
        self._write(ERASE_LINE + self._screen.styling.styled(clip_to_terminal(line, self._screen.stream), DIM))

    def _erase(self) -> None:
        if self._line_shown:
            self._line_shown = False
            self._write(ERASE_LINE)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # A failed write to standard error is not fatal.
            self._screen.stream.write(text)
            self._screen.stream.flush()

    def _tick(self) -> None:
        while not self._ended.wait(_FRAME_SECONDS):
            self.draw()
