"""The view's output as exact text."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from quant.wording import spell_out
from qwchat.chat import advice
from qwchat.chat.formatting import duration, short_duration
from qwchat.chat.statistics import ending_notice, statistics_line
from qwchat.chat.view.colour import styling_of
from qwchat.chat.view.prefill_status import PrefillStatus
from qwchat.chat.view.progress import byte_progress
from qwchat.chat.view.screen import Screen
from qwchat.chat.view.table import format_pairs, format_table
from qwchat.chat.view.tail import TerminalSize
from qwchat.cli import error_messages
from qwchat.events import Done, FinishReason, Prefilled, Stats
from qwchat.markdown.styles import Styling

PLAIN = Styling(terminal=True, emphasis=False, colour=False)


class Stream(io.StringIO):
    """A text stream that may claim to be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "choice", "environment", "styling"),
    [
        (True, "auto", {"TERM": "xterm"}, (True, True, True)),
        (True, "auto", {"TERM": "xterm", "NO_COLOR": "1"}, (True, True, False)),
        (True, "auto", {"TERM": "xterm", "NO_COLOR": ""}, (True, True, True)),
        (True, "auto", {"TERM": "dumb"}, (True, False, False)),
        (True, "auto", {}, (True, False, False)),
        (True, "never", {"TERM": "xterm"}, (True, False, False)),
        (True, "always", {"TERM": "dumb", "NO_COLOR": "1"}, (True, True, True)),
        (False, "auto", {"TERM": "xterm"}, (False, False, False)),
        (False, "always", {"TERM": "xterm"}, (False, True, True)),
    ],
)
def test_what_a_stream_can_show(
    terminal: bool, choice: str, environment: dict[str, str], styling: tuple[bool, bool, bool]
) -> None:
    stream = Stream(terminal=terminal)
    assert styling_of(stream, choice, environment) == Styling(*styling)  # type: ignore[arg-type]


def done(reason: FinishReason = "stop", cached: int = 0, generated: int = 48) -> Done:
    stats = Stats(1234, cached, generated, 0.5, 0.25, 0.125, 2048)
    return Done(reason, stats, "text", (), 42)


def test_the_line_of_figures() -> None:
    assert statistics_line(done(), sampled=True) == (
        "0.12 s to first token · 1,234 prompt tokens · prefill 2,468 tok/s · decode 188 tok/s · "
        "context 1,282/2,048 · seed 42"
    )
    assert statistics_line(done(cached=1200, generated=1), sampled=False) == (
        "0.12 s to first token · 1,234 prompt tokens (34 new, 1,200 cached) · prefill 68.0 tok/s · context 1,235/2,048"
    )


@pytest.mark.parametrize(
    ("generated", "accepted", "said"),
    [(48, 4, False), (48, 5, True), (1, 0, False), (401, 39, False), (401, 40, True)],
)
def test_draft_tokens_are_shown_if_they_saved_a_tenth_of_the_passes(generated: int, accepted: int, said: bool) -> None:
    of = done(generated=generated)
    of = replace(of, stats=replace(of.stats, drafted_tokens=1050, accepted_tokens=accepted))
    line = statistics_line(of, sampled=False)
    assert (f" · {accepted} of 1,050 draft tokens accepted · context" in line) == said
    assert ("draft" in line) == said


def test_a_narrow_line_drops_figures_in_a_fixed_order() -> None:
    drafted = replace(done(cached=1200), stats=replace(done(cached=1200).stats, drafted_tokens=50, accepted_tokens=40))
    lines = [
        "0.12 s to first token · 1,234 prompt tokens (34 new, 1,200 cached) · prefill 68.0 tok/s · decode 188 tok/s · "
        "40 of 50 draft tokens accepted · context 1,282/2,048 · seed 42",
        "0.12 s to first token · 1,234 prompt tokens (34 new) · prefill 68.0 tok/s · decode 188 tok/s · "
        "40 of 50 draft tokens accepted · context 1,282/2,048 · seed 42",
        "0.12 s to first token · 1,234 prompt tokens (34 new) · prefill 68.0 tok/s · decode 188 tok/s · "
        "context 1,282/2,048 · seed 42",
        "0.12 s to first token · 1,234 prompt tokens (34 new) · prefill 68.0 tok/s · decode 188 tok/s · "
        "ctx 1,282/2,048 · seed 42",
        "0.12 s to first token · 1,234 prompt tokens (34 new) · prefill 68.0/s · decode 188 tok/s · "
        "ctx 1,282/2,048 · seed 42",
        "0.12 s to first token · 1,234 prompt tokens (34 new) · prefill 68.0/s · decode 188/s · "
        "ctx 1,282/2,048 · seed 42",
        "0.12 s · 1,234 prompt tokens (34 new) · prefill 68.0/s · decode 188/s · ctx 1,282/2,048 · seed 42",
        "0.12 s · 34 new · prefill 68.0/s · decode 188/s · ctx 1,282/2,048 · seed 42",
        "0.12 s · 34 new · decode 188/s · ctx 1,282/2,048 · seed 42",
        "0.12 s · decode 188/s · ctx 1,282/2,048 · seed 42",
        "0.12 s · decode 188/s · ctx 1,282/2,048",
        "decode 188/s · ctx 1,282/2,048",
        "ctx 1,282/2,048",
    ]
    for columns in range(200, 0, -1):
        shown = statistics_line(drafted, sampled=True, columns=columns)
        assert shown == next((line for line in lines if len(line) <= columns), lines[-1])


def test_figures_of_an_interrupted_prefill() -> None:
    stopped = Done("cancelled", Stats(3000, 0, 0, 5.7, 0.0, None, 4096, unread_tokens=2744), "", (), 42)
    assert statistics_line(stopped, sampled=False) == (
        "stopped after 256 of 3,000 prompt tokens · prefill 44.9 tok/s · context 256/4,096"
    )
    assert (
        statistics_line(stopped, sampled=False, columns=60) == "stopped at 256/3,000 · prefill 44.9/s · ctx 256/4,096"
    )
    told = json.loads(statistics_line(stopped, sampled=False, form="json"))
    assert {name: told["tokens"][name] for name in ("prompt", "cached", "read", "generated", "context_used")} == {
        "prompt": 3000,
        "cached": 0,
        "read": 256,
        "generated": 0,
        "context_used": 256,
    }
    assert told["timings"]["time_to_first_token"] is None
    assert told["timings"]["prefill_tokens_per_second"] == 44.912
    again = replace(stopped, stats=replace(stopped.stats, cached_tokens=100))
    assert statistics_line(again, sampled=False).startswith(
        "stopped after 256 of 3,000 prompt tokens (156 new, 100 cached) · "
    )
    unread = replace(stopped, stats=replace(stopped.stats, unread_tokens=3000, prefill_seconds=0.0))
    assert statistics_line(unread, sampled=False) == "stopped after 0 of 3,000 prompt tokens · context 0/4,096"


@pytest.mark.parametrize(
    ("reason", "max_tokens", "notice", "chat"),
    [
        ("stop", 5, "", ""),
        ("cancelled", None, "", ""),
        (
            "length",
            5,
            "the reply was cut off at --max-tokens 5",
            "the reply was cut off at max-tokens 5; /continue resumes it",
        ),
    ],
)
def test_why_a_reply_ended(reason: FinishReason, max_tokens: int | None, notice: str, chat: str) -> None:
    assert both_notices(done(reason), max_tokens) == (notice, chat)


def both_notices(ended: Done, max_tokens: int | None = None) -> tuple[str, str]:
    """Return the notice on the command line and in the chat; "" without a notice."""
    shell, chat = ending_notice(ended, max_tokens), ending_notice(ended, max_tokens, chat=True)
    return spell_out(shell or "", error_messages.as_flag), spell_out(chat or "", advice.format_argument)


def test_the_notice_of_a_reply_that_filled_the_context() -> None:
    cut = "the reply was cut off: the context of 2,048 tokens is full"
    assert both_notices(done("context")) == (
        f"{cut}; --ctx N allows a larger one",
        f"{cut}; /drop or /summarise frees tokens, /continue resumes it",
    )


def test_the_notice_of_a_reply_that_repeated_itself() -> None:
    assert both_notices(done("repetition")) == (
        "the reply repeated itself and was stopped; --repeat-penalty 1.1 may help, --loop-guard 0 disables the check",
        "the reply repeated itself and was stopped; /set repeat-penalty 1.1 and /retry may help; /continue resumes it",
    )


def test_tables_and_pairs() -> None:
    assert format_table(("name", "bytes", ""), [("a", "1,000", ""), ("longer", "7", "x")], right=(1,)) == (
        "name    bytes\na       1,000\nlonger      7  x"
    )
    assert format_table(("title", ""), [("漢字\n\x1b[31m", "a"), ("é", "b")]) == "title\n漢字␊␛[31m  a\né           b"
    assert format_pairs([("model", "mini"), ("bits", "4.5")]) == "model  mini\nbits   4.5"


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0032, "3 ms"), (0.099, "99 ms"), (0.1, "0.10 s"), (9.99, "9.99 s"), (12.34, "12.3 s"), (200, "3 min 20 s")],
)
def test_short_durations(seconds: float, shown: str) -> None:
    assert short_duration(seconds) == shown


def test_progress_without_a_rewritable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 6.0, 7.0, 12.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    stream = Stream(terminal=False)
    with byte_progress("converting mini", 4_000_000, Screen(stream, PLAIN), rewritable=False) as progress:
        for part in (500_000, 1_500_000, 2_000_000, 3_000_000):
            progress.update(part, "a tensor")
    assert stream.getvalue() == (
        "qwchat: converting mini: 37 % (1.5 MB of 4.0 MB, 200 kB/s, 12 s to go)\n"
        "qwchat: converting mini: 75 % (3.0 MB of 4.0 MB, 227 kB/s, 4 s to go)\n"
    )


def test_figures_come_as_a_line_as_json_or_not_at_all() -> None:
    stream = Stream(terminal=False)
    screen = Screen(stream, PLAIN, figures="json")
    screen.statistics(done(), sampled=False)
    told = json.loads(stream.getvalue())
    assert (told["finish_reason"], told["seed"]) == (done().finish_reason, done().seed)
    assert told["tokens"]["prompt"] == done().stats.prompt_tokens
    screen.set_figures_form("off")
    screen.statistics(done(), sampled=False)
    assert len(stream.getvalue().splitlines()) == 1
    screen.set_figures_form("line")
    screen.statistics(done(), sampled=False)
    assert stream.getvalue().splitlines()[1] == statistics_line(done(), sampled=False, columns=80)


def test_a_quiet_screen_shows_errors_only() -> None:
    stream = Stream(terminal=False)
    screen = Screen(stream, PLAIN, quiet=True)
    screen.notice("a notice")
    screen.statistics(done(), sampled=True)
    with byte_progress("converting", 10, screen, rewritable=True) as progress:
        progress.update(10, "")
    screen.error("it broke\nin two \x1b lines")
    assert stream.getvalue() == "qwchat: error: it broke in two ␛ lines\n"


def test_progress_through_a_prompt_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 0.1, 0.5, 1.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    stream = Stream(terminal=True)
    status = PrefillStatus(stream, PLAIN, enabled=True)
    status.start()
    for done_tokens in (128, 256, 384):
        status.update(Prefilled(done_tokens, 1024, 64))
    status.clear()
    assert stream.getvalue() == (
        "\r\x1b[Kreading the prompt: 256 of 1,024 tokens (25 %), 384 tok/s, 2 s to go"
        "\r\x1b[Kreading the prompt: 384 of 1,024 tokens (37 %), 320 tok/s, 2 s to go\r\x1b[K"
    )


def test_progress_is_as_wide_as_can_be_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 0.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    monkeypatch.setattr("qwchat.chat.view.prefill_status.terminal_size", lambda stream: TerminalSize(20, 10))
    stream = Stream(terminal=True)
    status = PrefillStatus(stream, PLAIN, enabled=True)
    status.start()
    status.update(Prefilled(256, 1024, 0))
    assert stream.getvalue() == "\r\x1b[Kreading the prompt:"
