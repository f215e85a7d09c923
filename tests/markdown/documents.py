"""Random Markdown documents for tests, made of pieces that occur in replies."""

from __future__ import annotations

from hypothesis import strategies as st

LINES = st.sampled_from(
    [
        "",
        "",
        "",
        "text",
        "Some **strong** and *soft* words, `code`, ~~gone~~ and 2*3*4.",
        "**bold that\n",
        "ends here** and `code that",
        "unclosed ** and ` and [ and <think>",
        "</think> &amp; \\* \\[ x \\] a_b_c __init__",
        '[a link](https://example.org/a_b_(c)?x=1&y=2 "its title") ![image](pic.png)',
        "word " * 30,
        "**bold** and `code span` in " * 9,
        "averyveryverylongwordwithoutanyblank" * 4,
        "中文字符测试，这是一个很长的句子，需要换行。「引用」" * 3,
        "family 👨‍👩‍👧‍👦 flag 🇩🇪 heart ❤️ thumb 👍🏽 e\u0301 नि क्षि ก็",
        "# Heading",
        "### Low *heading* ###",
        "===",
        "---",
        "***",
        "- item",
        "* item with `code`",
        "+ ",
        "-",
        "1. first",
        "2) second",
        "10. tenth",
        "> quote",
        ">",
        "> - item in quote",
        "- > quote in item",
        "- - two at once",
        "```",
        "```python",
        "    indented",
        "~~~~ c x",
        "~~~~",
        "/* a comment",
        'def f(x): return """a',
        '"""',
        "| a | b |",
        "|---|:-:|",
        "a | b",
        "--- | ---",
        "| 1 | `x` | three |",
        "| long cell " + "word " * 12 + "| y |",
        "\\[ x_{1}",
        "$$",
        "= y_{2} \\]",
        "\tafter a tab",
        "trailing blanks   ",
        "back\\",
    ]
)
INDENTS = st.sampled_from(["", "", "", "", " ", "  ", "   ", "    ", "     ", "> ", "- ", "      "])


@st.composite
def documents(draw: st.DrawFn, most_lines: int = 14) -> str:
    """Draw a document of up to `most_lines` lines, with or without a newline at its end."""
    lines = [draw(INDENTS) + draw(LINES) for _ in range(draw(st.integers(0, most_lines)))]
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """Split `text` at random positions."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=25)))
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
