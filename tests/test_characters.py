"""Characters that are made visible, and those that scripts need and keep."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.characters import StreamSanitiser, escape_json, sanitise, show_code_points, unsafe_pattern

# Format characters that are visible or position hieroglyphs.
DRAWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
WALES = "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"
PIECES = [
    *("a", "1", " ", "\n", "\t", "é", "漢", "葛", "क", "ش", "ก", "ᠠ", "👍", "❤", "👩", "\U0001f3f4", "∩", "̈"),
    *("\u200b", "\u200c", "\u200d", "\u200e", "\xad", "\ufe00", "\ufe0e", "\ufe0f", "\u180b", "\U000e0100", "\x1b"),
    *("\U000e0067", "\U000e0041", "\U000e007f", "\ud800"),
]


def test_every_control_and_format_character_is_made_visible() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs") and character not in "\n\t":
            shown = sanitise(f"a{character}")
            assert (shown == f"a{character}") == (code in DRAWN), hex(code)
            assert code in DRAWN or shown[1:].isprintable()


@pytest.mark.parametrize(
    "character",
    # Invisible, although their category is letter, mark or none.
    [
        "\u034f",
        "\u115f",
        "\u1160",
        "\u17b4",
        "\u17b5",
        "\u3164",
        "\uffa0",
        "\ufe00",
        "\ufe0f",
        "\U000e0100",
        "\U000e0fff",
    ],
)
def test_invisible_characters_of_any_category_are_made_visible(character: str) -> None:
    assert sanitise(f"a{character}b") == f"a<{ord(character):02X}>b"


@pytest.mark.parametrize(
    "text",
    [
        "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 ❤️ ☺︎ ❤️‍🔥 1️⃣ #️⃣ ©️ 🏴‍☠️ ⛹🏿‍♀️",
        f"{WALES} 🇪🇺",
        "می‌خواهم نمی‌دانم",  # Persian, with U+200C
        "क्‍ष र्‍य ക്‍ ශ්‍රී",  # Indic, with U+200D
        "ភាសា\u200bខ្មែរ ภาษา\u200bไทย",
        "葛\U000e0100 ≨\ufe00 ᠠ\u180b",
        "Ünïcödé, مرحبا שלום, 漢字かな\n\tindented",
    ],
)
def test_invisible_characters_that_a_script_needs_stay(text: str) -> None:
    assert sanitise(text) == text
    assert show_code_points(text) == text
    pieces = StreamSanitiser()
    assert "".join(map(pieces.push, text)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("soft\xadhyphen", "soft<AD>hyphen"),
        ("pass\u200dword", "pass<200D>word"),
        ("a\u200b\u200c\u200d", "a<200B><200C><200D>"),
        ("👍\ufe0f\ufe0f\ufe01", "👍\ufe0f<FE0F><FE01>"),  # more than one is meaningless and could hide a text
        ("👩\u200d\u200d", "👩\u200d<200D>"),
        ("\U0001f3f4" + "\U000e0061" * 9, "\U0001f3f4" + "\U000e0061" * 7 + "<E0061>" * 2),
        ("a\U000e0061\U000e0041", "a<E0061><E0041>"),
        ("葛\U000e0100\U000e0101", "葛\U000e0100<E0101>"),
    ],
)
def test_the_same_characters_elsewhere_are_made_visible(text: str, shown: str) -> None:
    assert sanitise(text) == shown


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12))
def test_pieces_of_any_size_give_the_same_text(pieces: list[str]) -> None:
    stream = StreamSanitiser()
    assert "".join(map(stream.push, pieces)) == sanitise("".join(pieces))


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_escaped_json_has_the_same_value(text: str) -> None:
    line = escape_json(json.dumps([text], ensure_ascii=False))
    assert json.loads(line) == json.loads(json.dumps([text]))
    assert not unsafe_pattern(line).search(line)
    assert "\x1b" not in show_code_points(text)


def test_ascii_is_handled_alike_in_any_text() -> None:
    ascii_text = "".join(map(chr, range(128)))
    assert sanitise(ascii_text + "é") == sanitise(ascii_text) + "é"
    assert escape_json(ascii_text + "é") == escape_json(ascii_text) + "é"
