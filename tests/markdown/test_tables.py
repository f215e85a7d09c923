"""Tables in replies: columns that stay fixed, and records where columns would break words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.markdown.block_renderer import RenderOptions
from qwchat.markdown.stream_parser import StreamParser
from tests.markdown.documents import pieces
from tests.markdown.test_stream_parser import OPTIONS, plain, rendered
from tests.tiers import count


def test_a_tall_table_keeps_its_columns_and_is_printed_row_by_row() -> None:
    head, body = "| a | b |\n|---|---|\n", [f"| {number} | *x* |" for number in range(5)]
    assert plain(head + "\n".join(body[:2])) == ["a │ b", "──┼──", "0 │ x", "1 │ x"]
    # The last column gets the remaining width for later rows.
    rows = ["a │ b", "──┼" + "─" * 37, *(f"{number} │ x" for number in range(5))]
    assert plain(head + "\n".join(body)) == rows
    wide = "| 5 | " + "word " * 9 + "|\n| 6 | extra | cell |"
    assert plain(head + "\n".join(body) + "\n" + wide) == [
        *rows,
        "5 │ word word word word word word word",
        "  │ word word",
        "6 │ extra │ cell",
    ]
    parser = StreamParser(OPTIONS)
    parser.push(head)
    for number, row in enumerate(body):
        parser.push(row + "\n")
        assert (parser.take_rows() != []) == (number >= 2)
        assert (parser.preview() == []) == (number >= 2)


def test_without_wrapping_a_tall_table_keeps_its_width() -> None:
    body = "".join(f"| {number} | x |\n" for number in range(4))
    unwrapped = RenderOptions(None, 4, True)
    shown = plain("| a | b |\n|---|---|\n" + body + "| 4 | " + "word " * 40 + "|", unwrapped)
    assert shown == ["a │ b", "──┼──", *(f"{number} │ x" for number in range(4)), "4 │ " + ("word " * 40).strip()]


def test_a_wide_table_is_wrapped_or_becomes_records() -> None:
    source = "| one | two |\n|---|---|\n| " + "word " * 6 + "| " + "more " * 6 + "|"
    assert plain(source, RenderOptions(30, 10, True)) == [
        "one           │ two",
        "──────────────┼──────────────",
        "word word     │ more more",
        "word word     │ more more",
        "word word     │ more more",
    ]
    # Too narrow for two columns; in the second case, even one row exceeds the tail.
    records = ["one: word word", "  word word word", "  word", "two: more more", "  more more more", "  more"]
    assert plain(source, RenderOptions(16, 10, True)) == records
    assert plain(source, RenderOptions(30, 2, True)) == [
        "one: word word word word",
        "  word word",
        "two: more more more more",
        "  more more",
    ]


RECORDS = """| Language | Typing discipline | Memory |
|:--|:-:|--:|
| Rust | *static*, strong | ownership and borrowing, checked at compile time |
| 日本語 | 静的型付け言語ですとても長い説明がここにあります | |
| C | | `malloc` | extra |
| https://example.org/an/address/that/is/one/word | | |
|  | only one |
"""


def test_a_table_that_would_break_words_becomes_records() -> None:
    assert plain(RECORDS, RenderOptions(40, 12, True)) == [
        "Language: Rust",
        "Typing discipline: static, strong",
        "Memory: ownership and borrowing,",
        "  checked at compile time",
        "",
        "Language: 日本語",
        "Typing discipline: 静的型付け言語です",
        "  とても長い説明がここにあります",
        "Memory:",
        "",
        "Language: C",
        "Typing discipline:",
        "Memory: malloc",
        "extra",
        "",
        "Language:",
        "https://example.org/an/address/that/is/one/word",
        "Typing discipline:",
        "Memory:",
        "",
        "Language:",
        "Typing discipline: only one",
    ]
    assert (
        rendered(RECORDS, RenderOptions(40, 12, True))[1]
        == "\x1b[1mTyping discipline:\x1b[0m \x1b[3mstatic\x1b[0m, strong"
    )


def test_a_word_wider_than_its_column_ends_the_columns_of_a_tall_table() -> None:
    body = "".join(f"| {number} | x |\n" for number in range(4))
    shown = plain(f"| number | b |\n|---|---|\n{body}| internationalisation | y |\n| 5 | z |")
    assert shown[-6:] == ["3         │ x", "", "number: internationalisation", "b: y", "", "number: 5", "b: z"][-6:]


def test_records_are_printed_as_they_arrive() -> None:
    options = RenderOptions(24, 8, True)
    whole = plain(RECORDS, options)
    parser, printed = StreamParser(options), []
    for number, line in enumerate(RECORDS.splitlines(keepends=True)):
        parser.push(line)
        printed += [row.text for row in parser.take_rows()]
        assert printed == whole[: len(printed)]
        assert (len(printed) > 0) == (number >= 2)


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("| | Value |\n|---|---|\n| internationalisation 1 | x y zz |", ["internationalisation 1", "Value: x y zz"]),
        (
            "| Key: | 値： |\n|---|---|\n| internationalisation | standardisation |",
            ["Key: internationalisation", "値： standardisation"],
        ),
        ("| standardisation | internationalisation |\n|---|---|", ["standardisation", "internationalisation"]),
        (
            "> | a | b |\n> |---|---|\n> | internationalisation | standardisation |",
            ["│ a: internationalisation", "│ b: standardisation"],
        ),
        (
            "- | a | b |\n  |---|---|\n  | internationalisation | standardisation |",
            ["• a: internationalisation", "  b: standardisation"],
        ),
    ],
    ids=["no header", "colon", "head alone", "quote", "list"],
)
def test_records_of_odd_tables(source: str, rows: list[str]) -> None:
    assert plain(source, RenderOptions(28, 8, True)) == rows


@settings(max_examples=count(150, 30), deadline=None)
@given(st.data(), st.integers(10, 90), st.integers(1, 12))
def test_printed_tables_are_prefixes_and_keep_all_cells(data: st.DataObject, width: int, tail_rows: int) -> None:
    words = st.sampled_from(
        ["a", "bc", "word", "internationalisation", "漢字かな交じり文", "x" * 60, "**bold**", "`c`", ""]
    )
    cell = st.lists(words, max_size=8).map(" ".join)
    rows = data.draw(st.lists(st.lists(cell, min_size=1, max_size=5), max_size=20))
    head = data.draw(st.lists(words.filter(bool), min_size=1, max_size=4))
    lines = [head, ["---"] * len(head), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\nend"
    options = RenderOptions(width, tail_rows, True)
    whole, parser, printed = plain(text, options), StreamParser(options), []
    for piece in data.draw(pieces(text)):
        parser.push(piece)
        printed += [row.text for row in parser.take_rows()]
        assert printed == whole[: len(printed)]
        parser.preview()
    shown = re.sub(r"[\W_]", "", "".join(whole))
    for row in rows:
        for part in row:
            assert all(re.sub(r"[\W_]", "", word) in shown for word in part.split() if len(word) <= 4)


@pytest.mark.parametrize(("width", "more"), [(40, ["3 │ x", "", "end"]), (8, ["", "a: 3", "b: x", "", "end"])])
def test_a_table_continues_after_a_stop(width: int, more: list[str]) -> None:
    head = "| a | b |\n|---|---|\n" if width == 40 else "| a | b |\n|---|---|\n| longword | x |\n"
    parser = StreamParser(RenderOptions(width, 8, True))
    parser.push(head + "| 1 | x |\n| 2 | x |\n")
    parser.resume()
    assert parser.take_rows() == []
    parser.push("| 3 | x |\n\nend")
    parser.end()
    assert [row.text for row in parser.take_rows()] == more


def test_a_very_long_cell_is_wrapped_and_its_markup_stays() -> None:
    cell = "**word** " * 300
    shown = plain(f"| a | b |\n|---|---|\n| 1 | {cell}|\n| 2 | y |", RenderOptions(40, 12, True))
    assert shown[0] == "a: 1"
    assert shown[1].startswith("b: **word** **word**")
    assert all(len(row) <= 40 for row in shown)
    assert " ".join(shown).count("**word**") == 300
    assert shown[-3:] == ["", "a: 2", "b: y"]
