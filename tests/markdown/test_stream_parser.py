"""Streaming Markdown: printed rows never change, and equal those of the whole text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.chat.view.reply import ReplyView, code_blocks
from qwchat.chat.view.tail import TerminalSize
from qwchat.markdown import block_renderer
from qwchat.markdown.block_renderer import RenderOptions
from qwchat.markdown.inline import inline_segments
from qwchat.markdown.stream_parser import StreamParser
from qwchat.markdown.styled_text import StyledRow
from qwchat.markdown.styles import Styling
from qwchat.markdown.table_grid import Cell, record_rows
from tests.chat.view.emulator import EmulatedTerminal
from tests.clocks import cost_growth
from tests.markdown.documents import documents, pieces
from tests.tiers import count

OPTIONS = RenderOptions(width=40, tail_rows=4, colour=True)
FULL = Styling(terminal=True, emphasis=True, colour=True)


def rendered(text: str, options: RenderOptions = OPTIONS) -> list[str]:
    """Return the rows of the whole text, rendered at once."""
    parser = StreamParser(options)
    parser.push(text)
    parser.end()
    return [row.to_ansi() for row in parser.take_rows()]


def plain(text: str, options: RenderOptions = OPTIONS) -> list[str]:
    """Return the rows of `rendered` without styles."""
    return [re.sub(r"\x1b\[[\d;]*m", "", row) for row in rendered(text, options)]


class Clock:
    """Clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@settings(max_examples=count(150, 30), deadline=None)
@given(st.data(), documents())
def test_printed_rows_are_a_prefix_of_the_final_rows(data: st.DataObject, text: str) -> None:
    whole = rendered(text)
    parser, printed = StreamParser(OPTIONS), []
    for piece in data.draw(pieces(text)):
        parser.push(piece)
        printed += [row.to_ansi() for row in parser.take_rows()]
        assert printed == whole[: len(printed)]
        parser.preview()
    parser.end()
    printed += [row.to_ansi() for row in parser.take_rows()]
    assert printed == whole


@settings(max_examples=count(40, 10), deadline=None)
@given(documents(6))
def test_every_prefix_of_the_text_gives_a_prefix_of_the_rows(text: str) -> None:
    whole = rendered(text)
    parser, printed = StreamParser(OPTIONS), []
    for character in text:
        parser.push(character)
        printed += [row.to_ansi() for row in parser.take_rows()]
        assert printed == whole[: len(printed)]


@settings(max_examples=count(80, 16), deadline=None)
@given(st.data(), documents(), st.integers(20, 60), st.integers(3, 30))
def test_screen_and_scrollback_equal_rendering_at_once(data: st.DataObject, text: str, columns: int, rows: int) -> None:
    size = TerminalSize(columns, rows)
    out, clock = EmulatedTerminal(columns, rows), Clock()
    view = ReplyView(out, FULL, clock=clock, size=lambda stream: size)
    for piece in data.draw(pieces(text)):
        clock.now += data.draw(st.sampled_from([0.0, 0.02, 0.1]))
        view.write(piece)
    view.end()
    straight = EmulatedTerminal(columns, rows)
    for row in rendered(text, RenderOptions(columns, size.tail_rows, True)):
        straight.write(row + "\n")
    assert out.lines == straight.lines
    assert view.last_reply == text


@settings(max_examples=count(150, 30), deadline=None)
@given(documents())
def test_no_text_of_the_model_is_lost(text: str) -> None:
    shown = "\n".join(plain(text, RenderOptions(None, 4, True)))
    numbers = [f"{number}" for number in range(1, len(code_blocks(text)) + 1)]
    for number in numbers:
        shown = shown.replace(f"── {number}", "", 1)
    # In both, a link's address follows its text, so only markup may differ.
    kept = re.sub(r"[\W_]", "", re.sub(r"\s", "", text))
    assert re.sub(r"[\W_]", "", shown) == kept


@settings(max_examples=count(100, 20), deadline=None)
@given(st.data(), documents())
def test_a_resize_neither_loses_nor_repeats_text(data: st.DataObject, text: str) -> None:
    with mock.patch("qwchat.markdown.table_stream.record_rows", record_with_unnamed_cells):
        check_a_resize(data, text)


def record_with_unnamed_cells(head: Sequence[Cell], row: Sequence[Cell], width: int) -> list[StyledRow]:
    """Return a record without the headers, which every record repeats."""
    return record_rows([], row, width)


def check_a_resize(data: st.DataObject, text: str) -> None:
    parser, shown = StreamParser(OPTIONS), ""
    for piece in data.draw(pieces(text)):
        parser.options = RenderOptions(data.draw(st.integers(10, 90)), data.draw(st.integers(1, 12)), True)
        parser.push(piece)
        parser.preview()
        shown += "\n".join(row.text for row in parser.take_rows()) + "\n"
    parser.end()
    shown += "\n".join(row.text for row in parser.take_rows())
    for number in range(1, len(code_blocks(text)) + 1):
        shown = shown.replace(f"── {number}", "", 1)
    assert re.sub(r"[\W_]", "", shown) == re.sub(r"[\W_]", "", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text_of",
    [
        lambda size: "# a" + " " * 3 * size + "x",
        lambda size: "# " + "[" * size,
        lambda size: "[a](" * (size // 3),
        lambda size: "*a **b " * (size // 6),
        lambda size: "`" + " ``".join("`" * (number % 40) for number in range(size // 5)),
        lambda size: "> " * size,
        lambda size: "\n" * 3 * size + "x",
        lambda size: "a|b\n" + "-|" * size,
        lambda size: "```c\n" + "/* " * (size // 20) + "\n" + "x" * 3 * size,
        lambda size: "a" + "\u0301" * (size // 3),
        lambda size: "\\(" * size,
    ],
    ids=range(11),
)
def test_awkward_text_takes_linear_time(text_of: Callable[[int], str]) -> None:
    def show(size: int) -> None:
        text, parser = text_of(size), StreamParser(RenderOptions(120, 12, True))
        for start in range(0, len(text), 100):
            parser.push(text[start : start + 100])
            parser.preview()
        parser.end()

    assert cost_growth(show, 1000, 8) < 24  # 64 if quadratic.


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("a\nb\n", ["a", "b"]),
        ("\n\na\n\n\nb\n\n", ["a", "", "", "b"]),
        ("# One *two* #\n## Three", ["One two", "Three"]),
        ("<think>\nhm\n</think>\nYes", ["<think>", "hm", "</think>", "Yes"]),
        ("- a\n  - b\n    c\n1. d\n\n   e\n", ["• a", "  • b", "    c", "1. d", "", "   e"]),
        ("- [ ] open\n- [x] done", ["• [ ] open", "• [x] done"]),
        ("> a\nb\n>\n> - c", ["│ a", "│ b", "│", "│ • c"]),
        ("a\n\n---\n\nb", ["a", "", "─" * 40, "", "b"]),
        ("Title\n---\nx", ["Title", "x"]),
        ("```py\nx = 1  \n\n  y\n```\nz", ["── 1 · py", "x = 1  ", "", "  y", "──", "z"]),
        ("1. a\n   ```\n   code\n     more\n   ```\n", ["1. a", "   ── 1", "code", "  more", "──"]),
        ("```\n```\n~~~ a b\nopen", ["── 1", "──", "── 2 · a b", "open"]),
        ("\tcode  x", ["    code  x"]),
        ("a | b\n-|-:\n1|2\n3|44|5\n\nend", ["a │  b │", "──┼────┼──", "1 │  2 │", "3 │ 44 │ 5", "", "end"]),
        ("see\nhttp://x.y/_a_/*b*.c and __init__ or 2*3*4", ["see", "http://x.y/_a_/*b*.c and __init__ or", "2*3*4"]),
        ("[t](http://a.b/c_d_e 'T') [http://a.b](http://a.b)", ["t (http://a.b/c_d_e 'T') http://a.b"]),
        (
            "![alt](a.png) <http://a.b> &lt; \\* \\[x\\] a\\\nb",
            ["!alt (a.png) <http://a.b> &lt; \\* \\[x\\]", "a\\", "b"],
        ),
        ("  /\\_/\\\n ( o.o )", ["  /\\_/\\", " ( o.o )"]),
        ("one two three four five six seven eight nine", ["one two three four five six seven eight", "nine"]),
        ("a " + "x" * 85 + " b", ["a", "x" * 85, "b"]),
        ("x" * 850, ["x" * 40] * 21 + ["x" * 10]),
        ("- " + "x" * 85 + "\n- [a](" + "u" * 60 + ")", ["• " + "x" * 85, "• a", "  (" + "u" * 60 + ")"]),
        ("漢" * 19 + "a、漢字", ["漢" * 19, "a、漢字"]),
        ("（漢" * 8 + "wordy（漢字", ["（漢" * 8 + "wordy", "（漢字"]),
        ("-", ["•"]),
        (r"$\mathbf{x}_{i}$ or \(\hat{a}_{1} *b*\)", [r"$\mathbf{x}_{i}$ or \(\hat{a}_{1} *b*\)"]),
        ("*one* for $5 and *two* for $10", ["one for $5 and two for $10"]),
        ("**$A** or **$B**, **${C}** or **$(d)**", ["$A or $B, ${C} or $(d)"]),
        ("1. so\n   \\[\n   - x\n=\n   \\]\n2. b", ["1. so", "   \\[", "   - x", "   =", "   \\]", "2. b"]),
        ("$$\n# x\n\n- y", ["$$", "# x", "", "• y"]),
        ("a\tb\té\t" + "c" * 15 + "\td", ["a       b       é       " + "c" * 15, "d"]),
        ("é\tx|b\n-|-\ny|1", ["é x │ b", "────┼──", "y   │ 1"]),
        ("\\[\n- x\n```\ny\n```", ["\\[", "- x", "── 1", "y", "──"]),
    ],
)
def test_rendering_of_blocks(source: str, rows: list[str]) -> None:
    assert plain(source) == rows


@settings(max_examples=count(80, 16), deadline=None)
@given(st.data(), st.integers(12, 60), st.sampled_from([("\\[", "\\]"), ("$$", "$$")]))
def test_a_formula_keeps_every_character(data: st.DataObject, width: int, ends: tuple[str, str]) -> None:
    lines = data.draw(st.lists(st.sampled_from([r"\mathbf{x}_{i}", "- c*d* \\\\", "+ `e`", "=", "# f"]), max_size=25))
    text = "\n".join(["So:", ends[0], *lines, ends[1], "and *so* on"])
    parser = StreamParser(RenderOptions(width, 4, True))
    for piece in data.draw(pieces(text)):
        parser.push(piece)
        parser.preview()
    parser.end()
    shown = "".join(row.text for row in parser.take_rows())
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text.replace("*so*", "so"))


def test_markers_stay_if_no_style_replaces_them() -> None:
    colourless = RenderOptions(40, 4, False)
    assert rendered("`code` and **bold**", colourless) == ["`code` and \x1b[1mbold\x1b[0m"]
    assert rendered("a `code` b ``x`y``") == ["a \x1b[36mcode\x1b[0m b \x1b[36mx`y\x1b[0m"]
    assert rendered("~~old~~ *new* **[l](u)**") == [
        "\x1b[9mold\x1b[0m \x1b[3mnew\x1b[0m \x1b[1;4ml\x1b[0m\x1b[1;2m (u)\x1b[0m"
    ]


@pytest.mark.parametrize(
    ("text", "strong"),
    [
        ("**注意：**这是一个例子。", ["注意："]),
        ("这是**“重要”**的，**GGUF格式（4位）**也是。", ["“重要”", "GGUF格式（4位）"]),
        ("**これは「テスト」**です。한국어**(강조)**입니다", ["これは「テスト」", "(강조)"]),
        ("**重要。** 的 **另一**", ["重要。", "另一"]),
        ("2 ** 3 和 ** 中 **", []),
        ("`**注意：**这是`", []),
    ],
)
def test_emphasis_needs_no_spaces_next_to_cjk(text: str, strong: list[str]) -> None:
    segments = inline_segments(text, colour=True)
    assert [part for part, style in segments if style == "1"] == strong
    assert "".join(part for part, _ in segments) == (text.replace("**", "") if strong else text.strip("`"))


def test_a_narrow_window_cuts_indentation_but_keeps_markers() -> None:
    nested = "1. one\n   - two\n     - three\n       10. four words in it\n> > > > quoted words"
    assert plain(nested, RenderOptions(14, 4, True)) == [
        "1. one",
        "   • two",
        "    • three",
        "      10. four",
        "      words in",
        "      it",
        "│ │ │ quoted",
        "│ │ │ words",
    ]


def test_a_long_paragraph_is_printed_in_parts() -> None:
    words = [f"word{number}" for number in range(500)]
    parser = StreamParser(OPTIONS)
    printed, most_held = 0, 0
    for word in words:
        parser.push(word + " ")
        printed += len(parser.take_rows())
        most_held = max(most_held, len(parser.preview()))
    parser.end()
    assert printed > 80
    assert most_held <= OPTIONS.tail_rows + 1
    assert " ".join(" ".join(plain(" ".join(words))).split()) == " ".join(words)


def test_a_long_list_and_long_code_are_printed_line_by_line() -> None:
    for line in ("- item", "    code", "text  \n"):
        parser = StreamParser(OPTIONS)
        for _ in range(50):
            parser.push(line + "\n")
            assert len(parser.preview()) <= 2 if line != "text  \n" else 8
        assert len(parser.take_rows()) >= 45
    parser = StreamParser(OPTIONS)
    parser.push("```\n")
    for number in range(50):
        parser.push(f"line {number}\n")
        assert parser.take_rows()[-1].text == f"line {number}"
        assert parser.preview() == []


def test_a_long_address_is_copied_as_one_word() -> None:
    parser = StreamParser(OPTIONS)
    parser.push("See https://example.org/" + "path/" * 12 + " there")
    assert [row.text for row in parser.preview()] == [
        "See",
        "https://example.org/path/path/path/path/",
        "path/path/path/path/path/path/path/path/",
        "there",
    ]
    parser.end()
    assert [(len(row.text), row.soft) for row in parser.take_rows()] == [(3, False), (80, True), (5, False)]


def test_tabs_in_the_tail_are_as_wide_as_on_the_screen() -> None:
    parser = StreamParser(RenderOptions(20, 4, False))
    parser.push('```go\n\tx := "é"\t// ' + "y" * 10)
    assert [row.text for row in parser.preview()] == [" " * 8 + 'x := "é"    ', "    // " + "y" * 10]
    parser.end()
    assert parser.take_rows()[-1].text == '\tx := "é"\t// ' + "y" * 10


def test_the_tail_closes_open_markup() -> None:
    def tail(text: str) -> list[str]:
        parser = StreamParser(OPTIONS)
        parser.push(text)
        return [row.to_ansi() for row in parser.preview()]

    assert tail("so **bold te") == ["so \x1b[1mbold te\x1b[0m"]
    assert tail("so **") == ["so"]
    assert tail("a `co") == ["a \x1b[36mco\x1b[0m"]
    assert tail("text\n-") == ["text"]
    assert tail("```py\nx = 1") == ["x = 1"] or tail("```py\nx = 1")[-1].startswith("x = ")


@pytest.mark.parametrize(
    ("printed_text", "more", "rows"),
    [
        ("```py\nx = ", "1\n```\n", ["1", "──"]),
        ("some **te", "xt** goes on\n\nend", ["xt** goes on", "", "end"]),
        ("- item\n", "- next", ["• next"]),
        ("- ite", "m\n- next", ["  m", "• next"]),
        ("a\n", "b", ["b"]),
    ],
)
def test_a_continued_reply_begins_where_it_stopped(printed_text: str, more: str, rows: list[str]) -> None:
    parser = StreamParser(OPTIONS)
    parser.push(printed_text)
    parser.resume()
    parser.take_rows()
    parser.push(more)
    parser.end()
    assert [row.text for row in parser.take_rows()] == rows


def test_code_blocks_are_verbatim() -> None:
    text = "1. a\n   ```py\n   x\n\n\ty\n   ```\n> ```\n> q\n\n~~~\r\nlast  \r\n"
    assert code_blocks(text) == ["x\n\n y\n", "q\n", "last  \n"]
    text = "```make\na:\n\tb\n \tc\n```\n- ~~~\n  d\n  \te\n  ~~~\n>\t```\n> \tf\n>\tg\n> ```\n ~~~\n\th\n \ti"
    assert code_blocks(text) == ["a:\n\tb\n \tc\n", "d\n\te\n", "f\ng\n", "   h\n\ti\n"]


@pytest.mark.parametrize(
    "part",
    ["Some **bold** words and `code`, ", "- an item\n", "| a | b |\n|---|---|\n| 1 | 2 |\n\n", "x = 1\n", "漢字、"],
)
@pytest.mark.slow
def test_the_cost_of_a_piece_does_not_grow_with_the_reply(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = [0]
    for name in ("inline_segments", "wrap_segments", "highlight_line"):
        real = getattr(block_renderer, name)

        def counting(text: Any, *arguments: Any, real: Any = real, **named: Any) -> Any:
            work[-1] += len(text)
            return real(text, *arguments, **named)

        monkeypatch.setattr(block_renderer, name, counting)
    parser = StreamParser(OPTIONS)
    parser.push("```py\n" if part.startswith("x") else "")
    for _ in range(2000):
        work.append(0)
        parser.push(part)
        parser.take_rows()
        parser.preview()
    assert sum(work[1800:]) <= 1.1 * sum(work[200:400]) + 200
    assert max(work) < 4000
