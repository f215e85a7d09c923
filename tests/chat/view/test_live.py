"""Frames: how many, how large, what they leave on the terminal, also when its size changes."""

from __future__ import annotations

import io
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.chat.view.live import Pace, Size, reflows, terminal_size
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.terminal import Look, harmless, harmless_name
from tests.chat.view.emulator import Emulated
from tests.chat.view.test_flow import Clock

FULL = Look(terminal=True, emphasis=True, colour=True)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u206f]")
FUZZED_REPLIES = 10_000


class Viewer:
    """A view on an emulated terminal whose size and clock the test sets."""

    def __init__(self, columns: int = 40, rows: int = 12, look: Look = FULL, history: int = 20_000) -> None:
        self.out = Emulated(columns, rows, history)
        self.clock = Clock()
        self.size = Size(columns, rows)
        self.view = ReplyView(self.out, look, clock=self.clock, size=lambda stream: self.size)

    def say(self, *pieces: str, seconds: float = 0.1) -> None:
        for piece in pieces:
            self.clock.now += seconds
            self.view.write(piece)

    def resize(self, columns: int, rows: int) -> None:
        self.size = Size(columns, rows)
        self.out.screen.resize(rows, columns)


def words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def test_a_frame_is_one_write_inside_synchronised_output() -> None:
    viewer = Viewer()
    viewer.say("One **two** three\nfour\n\nfi", "ve")
    viewer.view.end()
    first, second, last = viewer.out.writes
    assert first == (
        "\x1b[?2026h\r\x1b[JOne \x1b[1mtwo\x1b[0m three\nfour\n\x1b[?7l\nfive\x1b[?7h\x1b[?2026l".replace("five", "fi")
    )
    assert second == "\x1b[?2026h\x1b[1A\r\x1b[J\x1b[?7l\nfive\x1b[?7h\x1b[?2026l"
    assert last == "\x1b[?2026h\x1b[1A\r\x1b[J\nfive\n\x1b[?2026l"
    assert viewer.out.lines == ["One two three", "four", "", "five"]


def test_a_frame_in_which_nothing_changes_is_not_drawn() -> None:
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


def test_a_few_tokens_at_once_are_all_seen_at_once() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert [pace.due() for _ in range(4)] == [True, True, True, False]
    clock.now += 10
    assert [pace.due() for _ in range(4)] == [True, True, True, False]


def test_the_tail_is_bounded_and_everything_above_it_stays() -> None:
    viewer = Viewer(columns=20, rows=9)
    text = "".join(f"- item {number} with some words\n" for number in range(300)) + "word " * 400
    for piece in words(text):
        viewer.say(piece)
    moves = [int(match) for frame in viewer.out.writes for match in re.findall(r"\x1b\[(\d+)A", frame)]
    assert max(moves) == 2
    viewer.view.end()
    assert " ".join(" ".join(viewer.out.lines).split()) == " ".join(text.replace("- ", "• ").split())


def test_ten_thousand_lines_scroll_by_untouched() -> None:
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


def test_a_terminal_that_breaks_lines_anew_is_moved_up_further(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not reflows({"TERM": "xterm"})
    assert reflows({"VTE_VERSION": "7600"})
    assert reflows({"TERM_PROGRAM": "iTerm.app"})
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    viewer = Viewer(columns=40, rows=12)
    viewer.say("word " * 7)
    viewer.size = Size(20, 12)
    viewer.say("more")
    assert viewer.out.writes[-1].startswith("\x1b[?2026h\x1b[1A\r\x1b[J")


def test_the_size_of_what_is_no_terminal() -> None:
    assert terminal_size(io.StringIO()) == Size(80, 24)
    assert [Size(80, rows).cap for rows in (1, 9, 24, 36, 100)] == [1, 3, 8, 12, 12]


def test_a_wide_table_or_emoji_in_the_tail_cannot_shift_it() -> None:
    viewer = Viewer(columns=20, rows=12)
    family = "👨‍👩‍👧‍👦"  # Eight columns for the emulator, two for newer terminals.
    viewer.say(f"a {family} b {family} c {family}", " d", " e", "\n\nlast")
    viewer.view.end()
    straight = Emulated(20, 12)
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


def test_control_sequences_in_replies_leave_the_terminal_as_it_was() -> None:
    chance = random.Random(4)
    looks = (FULL, Look(terminal=True, emphasis=True, colour=False), Look(terminal=True, emphasis=False, colour=False))
    viewers = [Viewer(30, 10, look, history=0) for look in looks]
    before = [viewer.out.state for viewer in viewers]
    for number in range(FUZZED_REPLIES):
        viewer = viewers[number % len(viewers)]
        pieces = chance.choices(SEQUENCES, k=chance.randint(1, 7))
        viewer.say(*pieces, seconds=chance.choice([0.0, 0.1]))
        viewer.view.end()
        sent = "".join(viewer.out.writes)
        viewer.out.writes.clear()
        ours = re.sub(r"\x1b\[(?:\?2026[hl]|\?7[hl]|\d+A|J|[\d;]*m)", "", sent)
        assert not CONTROL.search(ours.replace("\r", "")), (pieces, sent)
        assert viewer.out.state == before[number % len(viewers)], pieces


@given(st.text(max_size=60))
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = harmless(text)
    assert not CONTROL.search(shown)
    assert "".join(harmless(character) for character in text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;t\x07\x9b31m\x7f\x00", "␛]0;t␇<9B>31m␡␀"),
        ("a\u202eb\u2069c\u2028d\udc80", "a<202E>b<2069>c<2028>d<DC80>"),
        ("שלום \u200fok 👨‍👩‍👧‍👦\tx\n", "שלום \u200fok 👨‍👩‍👧‍👦\tx\n"),
    ],
)
def test_what_is_made_visible(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_names_stay_on_their_line() -> None:
    assert harmless_name("a\nqwchat: error:\t\x1b[31m") == "a␊qwchat: error:␉␛[31m"
