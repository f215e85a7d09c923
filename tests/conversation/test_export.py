"""Exports: exact Markdown and JSON, and pages that contain nothing but text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.characters import unsafe_pattern
from qwchat.conversation.export import EXPORT_FORMATS, ExportFormat, Transcript, export_transcript, file_name, format_of
from qwchat.conversation.tree import Tree
from qwchat.errors import UsageError
from tests.tiers import count

CREATED = "2026-11-24T02:03:04+00:00"


def transcript(*contents: str, system: str | None = None, title: str | None = None) -> Transcript:
    tree = Tree()
    if system is not None:
        tree.set_system(system)
    for number, content in enumerate(contents):
        tree.add("assistant" if number % 2 else "user", content)
    if title is not None:
        tree.set_title(title)
    return Transcript(tree, "mini", "3f9a1c20", CREATED, {"temp": 0.7})


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, str | None] = {}
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_markdown_keeps_every_turn_verbatim() -> None:
    assert export_transcript(transcript("Name a sea.\n", "The **North** Sea.", system="Be brief."), "md") == (
        "# Name a sea.\n\n## System\n\nBe brief.\n\n## You\n\nName a sea.\n\n\n## mini\n\nThe **North** Sea.\n"
    )


@pytest.mark.parametrize(
    ("reply", "ending"),
    [
        ("Look:\n```py\nx = 1", "\n```"),
        ("~~~~\n```\n", "~~~~"),
        ("```\nx\n```", ""),
        ("- a\n  ```\n  x", ""),
        ("`` ``` ``", ""),
    ],
)
def test_an_unclosed_code_block_ends_with_its_turn(reply: str, ending: str) -> None:
    tree = Tree()
    tree.add("user", "Code, please.")
    tree.add("assistant", reply, finish_reason="length")
    tree.add("user", "Thanks.")
    assert f"## mini\n\n{reply}{ending}\n\n## You\n\nThanks.\n" in export_transcript(Transcript(tree, "mini"), "md")


def test_json_contains_all_facts_about_each_turn() -> None:
    shown = transcript("Name a sea.", title="Seas")
    shown.tree.add("assistant", "North.", seed=7, finish_reason="length", model="0123abcd", settings={"temp": 0.5})
    document = json.loads(export_transcript(shown, "json"))
    for message in document["messages"]:
        assert message.pop("created").startswith("20")
    assert document == {
        "id": "3f9a1c20",
        "title": "Seas",
        "created": CREATED,
        "model": "mini",
        "messages": [
            {"role": "user", "content": "Name a sea."},
            {
                "role": "assistant",
                "content": "North.",
                "finish_reason": "length",
                "seed": 7,
                "settings": {"temp": 0.5},
                "model": "0123abcd",
            },
        ],
        "settings": {"temp": 0.7},
    }


def test_a_page_shows_replies_as_markdown_and_questions_as_typed() -> None:
    page = export_transcript(
        transcript("Is **a** < b?", "It **is**.\nTwo lines.\n\n| a | b |\n| - | - |\n| 1 | 2 |"), "html"
    )
    assert '<div class="said">Is **a** &lt; b?</div>' in page
    assert "<p>It <strong>is</strong>.<br />\nTwo lines.</p>" in page
    assert "<td>1</td>" in page
    assert "<title>Is **a** &lt; b?</title>" in page
    assert f"<footer>mini · {CREATED} · session 3f9a1c20</footer>" in page


HOSTILE = [
    "<script>alert(1)</script>",
    "</div></section><img src=x onerror=alert(1)>",
    "![x](https://example.org/pixel.png)",
    "[x](javascript:alert(1))",
    "[x](data:text/html;base64,AAAA)",
    "[x](vbscript:y)",
    '<https://example.org/"onmouseover="alert(1)>',
    '[x](https://example.org "a\\" onclick=\\"b")',
    '```" onload="x\n</code></pre><script>\n```',
    "</title><script>",
    "{title} {style} {0}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_contains_no_scripts_and_loads_nothing(text: str) -> None:
    shown = transcript(text, text, system=text, title=text)
    page = export_transcript(Transcript(shown.tree, text, text, text), "html")
    found = Page(page)
    assert found.tags.isdisjoint({"script", "img", "iframe", "object", "link", "base", "form"})
    assert [name for name in found.attributes if name.startswith("on") or name in ("src", "srcset")] == []
    assert not str(found.attributes.get("href") or "").lower().startswith(("javascript:", "data:", "vbscript:"))
    assert found.text.count(text.splitlines()[0][:15]) >= 3


@settings(max_examples=count(100, 20))
@given(st.text(max_size=200), st.text(max_size=200))
def test_messages_never_add_html_tags(question: str, reply: str) -> None:
    found = Page(export_transcript(transcript(question, reply, system=question, title=reply), "html"))
    assert found.tags.isdisjoint({"script", "img", "iframe", "object", "link", "base", "form", "input"})


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_an_empty_conversation_cannot_be_exported(form: ExportFormat) -> None:
    with pytest.raises(UsageError, match="the conversation is empty, so there is nothing to save"):
        export_transcript(transcript(system="Be brief."), form)


@pytest.mark.parametrize(
    ("name", "form"), [("a.json", "json"), ("a.HTML", "html"), ("a.htm", "html"), ("a.md", "md"), ("a", "md")]
)
def test_the_format_follows_the_file_name(name: str, form: ExportFormat) -> None:
    assert format_of(Path(name)) == form


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Name three seas!", "name-three-seas.md"),
        ("../../etc/passwd", "etc-passwd.md"),
        ("北海はどこ？", "北海はどこ.md"),
        ("???", "conversation.md"),
        ("-rf x", "rf-x.md"),
    ],
)
def test_a_file_is_named_after_the_title(question: str, name: str) -> None:
    assert file_name(transcript(question), "md") == name


def test_dropped_turns_are_marked() -> None:
    shown = transcript("Name a sea.", "North.", "A lake?", "Como.", "Thanks.")
    shown.tree.drop([1, 2], "Seas & <lakes>.")
    assert export_transcript(shown, "md") == (
        "# Name a sea.\n\n## You (not sent any more)\n\nName a sea.\n\n## mini (not sent any more)\n\nNorth.\n\n"
        "## Sent in place of the turns above\n\nSeas & <lakes>.\n\n"
        "## You\n\nA lake?\n\n## mini\n\nComo.\n\n## You\n\nThanks.\n"
    )
    messages = json.loads(export_transcript(shown, "json"))["messages"]
    assert [message.get("sent", True) for message in messages] == [False, False, True, True, True]
    assert [message.get("summary") for message in messages[:2]] == [None, "Seas & <lakes>."]
    page = Page(export_transcript(shown, "html")).text
    assert page.index("mini (not sent any more)") < page.index("Seas & <lakes>.") < page.index("A lake?")
    shown.tree.drop([])
    assert "not sent" not in export_transcript(shown, "md")


def test_exports_contain_no_control_characters() -> None:
    hostile = "a\x1b]0;t\x07\x9b31m\r\nb\xad\u202e\u200f\u2028\ufeff&#27;&#x9b;\x00 👨‍👩‍👧"
    tree = Tree()
    tree.set_system(hostile)
    tree.set_title(hostile)
    tree.add("user", hostile, settings={"stop": [hostile]})
    tree.add("assistant", f"{hostile}\n\n```\n{hostile}\n```\n[x](http://a/{hostile})", finish_reason="length\x1b")
    tree.drop([1], hostile)
    for form in EXPORT_FORMATS:
        text = export_transcript(Transcript(tree, hostile, "a1", hostile), form)
        assert not unsafe_pattern(text).search(text), form
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        assert "👨‍👩‍👧" in text
    assert "a[U+001B]]0;t[U+0007][U+009B]31m\nb[U+00AD]" in export_transcript(Transcript(tree, "m"), "md")
    assert json.loads(export_transcript(Transcript(tree, "m"), "json"))["messages"][1]["content"] == hostile
