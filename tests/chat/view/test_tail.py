"""Frames: their number and size, and what they leave on the terminal, also after a resize."""

from __future__ import annotations

import io
import os
import random
import re
from unittest import mock

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qwchat.characters import StreamSanitiser, sanitise, sanitise_name
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.tail import FrameLimiter, TerminalSize, reflows, terminal_size
from qwchat.markdown.styles import Styling
from tests.chat.view.emulator import EmulatedTerminal, ReflowingTerminal
from tests.markdown.test_stream_parser import Clock
from tests.tiers import count

FULL = Styling(terminal=True, emphasis=True, colour=True)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u206f]")
FUZZED_REPLIES = count(10_000, 1_000)
ERASED = "\r\x1b[K\x1b[C\x1b[J\r"
SIZE = TerminalSize(40, 12)


class Viewer:
    """View on an emulated terminal; the test sets its size and clock."""

    def __init__(self, columns: int = 40, rows: int = 12, styling: Styling = FULL, history: int = 20_000) -> None:
        self.out = EmulatedTerminal(columns, rows, history)
        self.clock = Clock()
        self.size = TerminalSize(columns, rows)
        self.view = ReplyView(self.out, styling, clock=self.clock, pause=self.clock.wait, size=lambda stream: self.size)

    def say(self, *pieces: str, seconds: float = 0.1) -> None:
        for piece in pieces:
            self.clock.now += seconds
            self.view.write(piece)

    def resize(self, columns: int, rows: int) -> None:
        self.size = TerminalSize(columns, rows)
        self.out.screen.resize(rows, columns)


def words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def test_a_frame_is_one_write_inside_synchronised_output() -> None:
    viewer = Viewer()
    viewer.say("One **two** three\nfour\n\nfi", "ve")
    viewer.view.end()
    first, second, last = viewer.out.writes
    assert first == (f"\x1b[?2026h{ERASED}One \x1b[1mtwo\x1b[0m three\nfour\n\n\x1b[?7lfi\x1b[?7h\x1b[?2026l")
    assert second == f"\x1b[?2026h\x1b[1A{ERASED}\n\x1b[?7lfive\x1b[?7h\x1b[?2026l"
    assert last == f"\x1b[?2026h\x1b[1A{ERASED}\nfive\n\x1b[?2026l"
    assert viewer.out.lines == ["One two three", "four", "", "five"]


def test_a_frame_without_changes_is_not_drawn() -> None:
    viewer = Viewer()
    viewer.say("word", " ", " ", "\n")
    assert len(viewer.out.writes) == 1


def test_at_most_fifteen_frames_are_drawn_in_any_second() -> None:
    for tokens_per_second in (5, 30, 400):
        viewer = Viewer()
        times: list[float] = []
        for number in range(4 * tokens_per_second):
            before = len(viewer.out.writes)
            viewer.say(f"w{number} ", seconds=1 / tokens_per_second)
            times += [viewer.clock.now] * (len(viewer.out.writes) - before)
        most = max(sum(start <= time < start + 1 for time in times) for start in times)
        assert most <= 15
        assert len(times) >= min(4 * tokens_per_second, 40)


def test_a_burst_of_tokens_is_shown_without_delay() -> None:
    clock = Clock()
    limiter = FrameLimiter(clock)
    assert [limiter.may_draw(SIZE) for _ in range(4)] == [True, True, True, False]
    clock.now += 10
    assert [limiter.may_draw(SIZE) for _ in range(4)] == [True, True, True, False]


@pytest.mark.slow
def test_the_tail_is_bounded_and_rows_above_it_stay() -> None:
    viewer = Viewer(columns=20, rows=9)
    text = "".join(f"- item {number} with some words\n" for number in range(300)) + "word " * 400
    for piece in words(text):
        viewer.say(piece)
    moves = [int(match) for frame in viewer.out.writes for match in re.findall(r"\x1b\[(\d+)A", frame)]
    assert max(moves) == 2
    viewer.view.end()
    assert " ".join(" ".join(viewer.out.lines).split()) == " ".join(text.replace("- ", "• ").split())


@pytest.mark.slow
def test_ten_thousand_lines_scroll_away_unchanged() -> None:
    viewer = Viewer(columns=60, rows=24)
    lines = [f"line {number} of many" for number in range(10_000)]
    for start in range(0, len(lines), 50):
        viewer.say("\n\n".join(lines[start : start + 50]) + "\n\n")
    viewer.view.end()
    assert [line for line in viewer.out.lines if line] == lines


@pytest.mark.parametrize("columns", [20, 25, 60])
def test_a_resize_while_streaming_redraws_the_tail_only(columns: int) -> None:
    viewer = Viewer(columns=40, rows=12)
    viewer.say("- first item\n- second item\n", "- third with **strong** words")
    viewer.resize(columns, 12)
    viewer.say(" and more of them", " until the end.\n\nlast")
    viewer.view.end()
    expected = {
        20: ["• third with strong", "  words and more of", "  them until the", "  end."],
        25: ["• third with strong words", "  and more of them until", "  the end."],
        60: ["• third with strong words and more of them until the end."],
    }
    assert viewer.out.lines == ["• first item", "• second item", *expected[columns], "", "last"]


def test_a_reflowing_terminal_moves_the_cursor_further_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    viewer = Viewer(columns=40, rows=12)
    viewer.say("word " * 7)
    viewer.size = TerminalSize(20, 12)
    viewer.say("more", seconds=0.5)
    viewer.say(" and more", seconds=0.5)
    assert viewer.out.writes[-1].startswith(f"\x1b[?2026h\x1b[1A{ERASED}")


class ResizedViewer(Viewer):
    """View in a window that is resized; the view learns of each size late."""

    def __init__(self) -> None:
        super().__init__()
        self.window = ReflowingTerminal(60, 40)
        self.reported_sizes = [(0.0, TerminalSize(60, 40))]
        self.view = ReplyView(
            self.window, FULL, clock=self.clock, pause=self.clock.wait, size=lambda stream: self.reported_size
        )

    @property
    def reported_size(self) -> TerminalSize:
        """Last size reported to the view."""
        return [size for time, size in self.reported_sizes if time <= self.clock.now][-1]

    def resize_late(self, size: TerminalSize, late: float) -> None:
        self.window.resize(*size)
        self.reported_sizes.append((max(self.reported_sizes[-1][0], self.clock.now + late), size))


def test_a_reply_that_ends_during_a_resize_waits_for_the_size() -> None:
    with mock.patch.dict(os.environ, {"KITTY_WINDOW_ID": "1"}):
        viewer = ResizedViewer()
        viewer.say("first\n\n", prose("w", 12))
        viewer.resize_late(TerminalSize(20, 40), late=0.0)
        viewer.say(" more", seconds=0.01)
        viewer.resize_late(TerminalSize(60, 40), late=0.2)
        viewer.view.end()
    assert viewer.window.text == f"first\n\n{prose('w', 12)}\nmore"


# Shrinking a failure would take minutes.
@settings(max_examples=count(60, 12), deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.data(), st.sampled_from([0.0, 0.03, 0.25]))
def test_resizing_a_window_loses_no_words(data: st.DataObject, late: float) -> None:
    listed = "".join(f"- i{number:03} and some more\n" for number in range(20))
    text = f"{prose('a', 60)}\n\n{listed}\n```\n{prose('c', 60)}\n```\n\n{prose('z', 60)}"
    # A view cannot erase rows that scrolled away; their words may appear twice.
    least, sizes = (10, [5, 12, 30, 40]) if late else (40, [36, 40])
    quiet = 0
    with mock.patch.dict(os.environ, {"KITTY_WINDOW_ID": "1"}):
        viewer = ResizedViewer()
        for piece in words(text):
            quiet -= 1
            if quiet < 0:
                for _ in range(data.draw(st.integers(1, 4))):
                    viewer.clock.now += 0.05
                    viewer.resize_late(
                        TerminalSize(data.draw(st.integers(least, 90)), data.draw(st.sampled_from(sizes))), late
                    )
                quiet = data.draw(st.integers(20, 60))
            viewer.say(piece, seconds=0.04)
        viewer.view.end()
    said, seen = (re.findall(r"[aciz]\d{3}", shown) for shown in (text, viewer.window.text))
    found = iter(seen)
    assert all(word in found for word in said)
    assert late or seen == said


def prose(letter: str, many: int) -> str:
    return " ".join(f"{letter}{number:03}" for number in range(many))


def test_a_tail_in_the_top_corner_leaves_nothing_in_the_scrollback() -> None:
    out = ReflowingTerminal(40, 12)
    clock = Clock()
    view = ReplyView(out, FULL, clock=clock, pause=clock.wait, size=lambda stream: SIZE)
    for word in ("one", "two", "three", "four"):
        clock.now += 0.1
        view.write(word + "\n")
    view.end()
    assert out.text == "one\ntwo\nthree\nfour"


@pytest.mark.parametrize(
    ("environment", "reflowing"),
    [
        ({"TERM": "xterm"}, False),
        ({"VTE_VERSION": "7600"}, True),
        ({"TERM_PROGRAM": "iTerm.app"}, True),
        ({"TERM": "xterm-kitty", "SSH_TTY": "/dev/pts/1"}, True),
        ({"TERM": "xterm-256color", "XTERM_VERSION": "XTerm(390)", "VTE_VERSION": "7600"}, False),
        ({"TERM": "screen", "STY": "1.pts", "VTE_VERSION": "7600"}, False),
        ({"TERM": "tmux-256color", "TMUX": "x", "XTERM_VERSION": "XTerm(390)"}, True),
        ({"TERM": "screen", "TMUX": "x", "STY": "1.pts"}, False),
    ],
)
def test_which_terminals_reflow(environment: dict[str, str], reflowing: bool) -> None:
    assert reflows(environment) is reflowing


def test_the_size_without_a_terminal() -> None:
    assert terminal_size(io.StringIO()) == TerminalSize(80, 24)
    assert [TerminalSize(80, rows).tail_rows for rows in (1, 9, 24, 36, 100)] == [1, 3, 8, 12, 12]


def test_wide_tables_and_emoji_do_not_shift_the_tail() -> None:
    viewer = Viewer(columns=20, rows=12)
    family = "👨‍👩‍👧‍👦"  # Eight columns in the emulator, two in newer terminals.
    viewer.say(f"a {family} b {family} c {family}", " d", " e", "\n\nlast")
    viewer.view.end()
    straight = EmulatedTerminal(20, 12)
    straight.write(f"a {family} b {family} c {family} d e\n\nlast\n")
    assert viewer.out.lines == straight.lines


# fmt: off
SEQUENCES = (
    "\x1b[?25l", "\x1b[?1049h", "\x1b[2J", "\x1b[H", "\x1b[3;5r", "\x1b[?7l", "\x1b[4h", "\x1bc", "\x1b(0", "\x0e",
    "\x1b]0;title\x07", "\x1b]2;title\x1b\\", "\x1b]52;c;aGk=\x07", "\x1b]8;;http://x\x1b\\", "\x1bP+q\x1b\\", "\x1b7",
    "\x9b?25l", "\x9d0;t\x9c", "\x90q\x9c", "\x84", "\x8d", "\x07", "\x08" * 5, "\r", "\x0b", "\x0c", "\x7f", "\x00",
    "\x1b[31m", "\x1b[5m", "\x1b[?1000h", "\x1b[?2004h", "\x1b[3g", "\x1bH", "\x1b[20h", "\x1b[6n", "\u202e", "\u2066",
    "\x1b", "[", "?25l", "\n", "`", "```\n", "**", "|a|b|\n|-|-|\n", "text ", "- ", "> ", "# ", "漢字", "\t", "\u2028",
)
# fmt: on


def test_control_sequences_in_replies_do_not_change_the_terminal() -> None:
    rng = random.Random(4)
    stylings = (
        FULL,
        Styling(terminal=True, emphasis=True, colour=False),
        Styling(terminal=True, emphasis=False, colour=False),
    )
    viewers = [Viewer(30, 10, styling, history=0) for styling in stylings]
    before = [viewer.out.state for viewer in viewers]
    for number in range(FUZZED_REPLIES):
        viewer = viewers[number % len(viewers)]
        pieces = rng.choices(SEQUENCES, k=rng.randint(1, 7))
        viewer.say(*pieces, seconds=rng.choice([0.0, 0.1]))
        viewer.view.end()
        sent = "".join(viewer.out.writes)
        viewer.out.writes.clear()
        ours = re.sub(r"\x1b\[(?:\?2026[hl]|\?7[hl]|\d+A|[CJK]|[\d;]*m)", "", sent)
        assert not CONTROL.search(ours.replace("\r", "")), (pieces, sent)
        assert viewer.out.state == before[number % len(viewers)], pieces


@given(st.text(max_size=60))
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = sanitise(text)
    assert not CONTROL.search(shown)
    pieces = StreamSanitiser()
    assert "".join(pieces.push(character) for character in text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;t\x07\x9b31m\x7f\x00", "␛]0;t␇<9B>31m␡␀"),
        ("a\u202eb\u2069c\u2028d\udc80", "a<202E>b<2069>c<2028>d<DC80>"),
        ("שלום \u200fok\u200e\u061c", "שלום <200F>ok<200E><61C>"),
        ("שלום ok 👨‍👩‍👧‍👦\tx\n", "שלום ok 👨‍👩‍👧‍👦\tx\n"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert sanitise(text) == shown


def test_names_stay_on_one_line() -> None:
    assert sanitise_name("a\nqwchat: error:\t\x1b[31m") == "a␊qwchat: error:␉␛[31m"
