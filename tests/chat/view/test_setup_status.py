"""Progress of the one-time setup, as exact text, with a simulated clock."""

from __future__ import annotations

import io

import pytest

from qwchat.chat.view.screen import Screen
from qwchat.chat.view.setup_status import SetupStatus
from qwchat.markdown.styles import Styling

ERASE = "\r\x1b[K"


class Run:
    """Setup status and its output, with a clock that only the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, rewritable: bool = True, quiet: bool = False) -> None:
        monkeypatch.setattr("qwchat.chat.view.setup_status._FRAME_SECONDS", 3600)
        self.now = 0.0
        self.stream = io.StringIO()
        screen = Screen(self.stream, Styling(terminal=rewritable, emphasis=False, colour=False), quiet=quiet)
        self.status = SetupStatus(screen, rewritable=rewritable, clock=lambda: self.now)

    def drawn_after(self, seconds: float) -> str:
        """Return the text drawn after so many more seconds."""
        self.now += seconds
        self.status.draw()
        return self.written()

    def written(self) -> str:
        """Return the text written since the last call."""
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text


def test_the_remaining_time_comes_from_the_finished_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    with run.status as status:
        status.expect(10)
        status.stage("loading the compiler", 0)
        assert run.drawn_after(3) == 2 * f"{ERASE}one-time setup: [....................] 0 %: loading the compiler"
        status.stage("compiling a", 1)
        assert run.drawn_after(1) == 2 * f"{ERASE}one-time setup: [....................] 0 %: compiling a"
        run.now += 1
        # One tenth took two seconds, without the loading time.
        status.stage("compiling b", 8)
        assert run.written() == f"{ERASE}one-time setup: [##..................] 10 %, 18 s to go: compiling b"
        assert run.drawn_after(8) == f"{ERASE}one-time setup: [##########..........] 50 %, 10 s to go: compiling b"
        # The stage exceeds its estimate: the bar stops near its end, and the machine counts as slower.
        assert run.drawn_after(16) == f"{ERASE}one-time setup: [#################...] 87 %, 4 s to go: compiling b"
        status.stage("compiling c", 1)
        assert run.written() == f"{ERASE}one-time setup: [##################..] 90 %, 3 s to go: compiling c"
        assert run.drawn_after(60) == f"{ERASE}one-time setup: [###################.] 99 %, 1 s to go: compiling c"
    assert run.written() == ERASE
    assert run.drawn_after(1) == ""


def test_a_conversion_reports_its_own_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    with run.status as status:
        status.expect(10)
        status.stage("converting mini", 4)
        status.advance(0.5)
        assert run.drawn_after(4).endswith("] 20 %, 16 s to go: converting mini")
        status.expect(36)
        assert run.drawn_after(0).endswith("] 5 %, 1 min 16 s to go: converting mini")


def test_without_redrawing_a_line_is_written_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, rewritable=False)
    with run.status as status:
        status.expect(10)
        status.stage("compiling a", 1)
        assert run.drawn_after(4.9) == ""
        assert run.drawn_after(0.1) == "qwchat: one-time setup: 0 %: compiling a\n"
        status.stage("compiling b", 9)
        assert run.drawn_after(4.9) == ""
        assert run.drawn_after(0.1) == "qwchat: one-time setup: 20 %, 40 s to go: compiling b\n"
    assert run.drawn_after(10) == ""


def test_waiting_for_another_process_is_reported_once_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    with run.status as status:
        status.expect(4)
        status.stage("compiling a", 1)
        run.written()
        run.now += 1
        status.wait("another qwchat is compiling b: waiting for it")
        assert run.written() == f"{ERASE}qwchat: another qwchat is compiling b: waiting for it\n"
        assert run.drawn_after(100) == ""
        status.stage("compiling c", 3)
        assert run.written().endswith("] 25 %, 3 s to go: compiling c")


def test_a_quiet_screen_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for rewritable in (True, False):
        run = Run(monkeypatch, rewritable=rewritable, quiet=True)
        with run.status as status:
            status.expect(2)
            status.stage("compiling a", 1)
            run.drawn_after(10)
            status.wait("another qwchat is compiling b: waiting for it")
        assert run.written() == ""


def test_a_closed_stream_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.stream.close()
    with run.status as status:
        status.stage("compiling a", 1)
        status.draw()
