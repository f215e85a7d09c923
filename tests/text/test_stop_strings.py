"""Stop strings are found independently of how the text is split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.errors import UsageError
from qwchat.text.stop_strings import StopStrings


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    finder = StopStrings(stops)
    text, stopped = "", False
    for piece in pieces:
        safe, stopped = finder.push(piece)
        text += safe
    return text + finder.flush(), stopped


def first_completed(stops: list[str], text: str) -> tuple[str, bool]:
    """Return the result of the definition: after each character, check whether the text ends with a stop string."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.text("abc", max_size=5), max_size=12),
)
def test_any_split_gives_the_same_result(stops: list[str], pieces: list[str]) -> None:
    assert run(stops, pieces) == first_completed(stops, "".join(pieces))


def test_only_a_possible_beginning_is_held_back() -> None:
    finder = StopStrings(["\n\nUser:"])
    assert finder.push("one\n") == ("one", False)
    assert finder.push("two\n\n") == ("\ntwo", False)
    assert finder.push("Us") == ("", False)
    assert finder.push("ual") == ("\n\nUsual", False)
    assert finder.push("\n\nUser: more") == ("", True)
    assert finder.push("and more") == ("", True)
    assert finder.flush() == ""


def test_without_stops_everything_passes_at_once() -> None:
    assert StopStrings().push("text") == ("text", False)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(UsageError, match="stop must not be empty"):
        StopStrings(["a", ""])
