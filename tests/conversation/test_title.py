"""Session titles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.conversation.title import MAX_LINE, MAX_TITLE, clean_line, title_from_question


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("Name three seas.", "Name three seas."),
        ("\n\n  hello\nthere", "hello"),
        ("# A `heading` **here**", "# A `heading` **here**"),
        ("what does src/*.py do", "what does src/*.py do"),
        ("* 5 is what?", "* 5 is what?"),
        ("3. Weltkrieg?", "3. Weltkrieg?"),
        ("> or < in bash?", "> or < in bash?"),
        ("- 5 + 3 = ?", "- 5 + 3 = ?"),
        ("is 2*3*4 = 24 and a_b_c a name?", "is 2*3*4 = 24 and a_b_c a name?"),
        ("why `__init__` and **kwargs?", "why `__init__` and **kwargs?"),
        ("[a](b) or <x>?", "[a](b) or <x>?"),
        ("File a.c++:\n\n```c++\nx\n```\n\nFile b: empty\n\nwhat is x", "what is x"),
        ("File b: empty", "File b: empty"),
        ("Explain this:\n\nx = 1\ny = 2", "Explain this:"),
        ("diff --git a/x b/x\n+x = 1\n\nDescribe this change", "Describe this change"),
        ("x = 1\n\nwhat is this?", "what is this?"),
        ("File a.py:\n\n```python\nx = 1\n```\n\nwhat is x", "what is x"),
        (
            "File a.md:\n\n````\n```\nIs this it?\n```\n````\n\nFile b:\n\n```\n\n```\n\nCompare them\nplease",
            "Compare them",
        ),
        ("File a b.md, lines 1-2:\n\n```\nx\n```", "File a b.md, lines 1-2"),
        ("File a.md:\n\n```\nnever closed", "File a.md:"),
        ("---\n???", "--- ???"),
        ("", ""),
        ("word " * 40, "word word word word word word word word word word word…"),
        ("x" * 100, "x" * 59 + "…"),
        ("北海はどこですか？", "北海はどこですか？"),
        ("a\x1b[31mb\x07", "a[31mb"),
    ],
)
def test_titles_are_made_from_the_question(question: str, title: str) -> None:
    assert title_from_question(question) == title


@given(st.text())
def test_titles_are_one_visible_line(text: str) -> None:
    for title, longest in ((title_from_question(text), MAX_TITLE), (clean_line(text), MAX_LINE)):
        assert len(title) <= longest
        assert title == title.strip()
        assert all(character.isprintable() or character == "\u200d" for character in title)


def test_emoji_sequences_are_not_split() -> None:
    assert clean_line("\U0001f469\u200d\U0001f4bb at work") == "\U0001f469\u200d\U0001f4bb at work"
