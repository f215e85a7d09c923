"""Server-sent events in pieces of any size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.remote.sse import MAX_LINE_BYTES, EventParser, LongLineError

STREAM = (
    "\ufeffdata: eins\r\n\r\n: comment\nevent: x\ndata: zwei\ndata:  drei\n\n"
    "data:\u00e4\u65e5\U0001f600\r\rid: 1\n\ndata: end"
)
EVENTS = ["eins", "zwei\n drei", "\u00e4\u65e5\U0001f600", "end"]


def events(*pieces: bytes) -> list[str]:
    parser = EventParser()
    found = [data for piece in pieces for data in parser.push(piece)]
    return [*found, *parser.flush()]


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    data = STREAM.encode()
    places = [0, *sorted(cuts), len(data)]
    assert events(*(data[start:stop] for start, stop in pairwise(places))) == EVENTS


def test_each_byte_alone() -> None:
    assert events(*(bytes([byte]) for byte in STREAM.encode())) == EVENTS


def test_invalid_utf8_is_replaced() -> None:
    assert events(b"data: a\xff\xe6\x97", b"\n\n") == ["a\ufffd\ufffd"]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * MAX_LINE_BYTES, b"data: xxxxxxxx\n" * (MAX_LINE_BYTES // 8)])
def test_an_event_has_a_longest_size(piece: bytes) -> None:
    parser = EventParser()
    with pytest.raises(LongLineError):
        list(parser.push(piece))
