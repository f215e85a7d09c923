"""Folding and unfolding of pastes; messages that look like commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.chat.commands import message_text, parse
from qwchat.chat.editor import message_syntax
from qwchat.chat.editor.paste_folds import PasteFolds, normalise_paste
from qwchat.chat.mentions import compose
from tests.tiers import count

FORTY = "\n".join(f"line {number}" for number in range(40))
TEXTS = st.text(alphabet='ab /"\n[]#1+', max_size=30)


@pytest.mark.parametrize(
    ("pasted", "label"),
    [
        (FORTY, "[Pasted text #1 +40 lines]"),
        (FORTY + "\n", "[Pasted text #1 +40 lines]"),
        ("x\n" * 14 + "x", "[Pasted text #1 +15 lines]"),
        ("x\n" * 13 + "x", "x\n" * 13 + "x"),
        ("x" * 1000, "[Pasted text #1 +1,000 characters]"),
        ("x" * 999, "x" * 999),
        ("\n" * 2000, "[Pasted text #1 +2,000 lines]"),
        ('"""doc"""', "[Pasted text #1 +9 characters]"),
        ("", ""),
    ],
)
def test_big_pastes_are_folded(pasted: str, label: str) -> None:
    folds = PasteFolds()
    assert folds.insertion_for(pasted, "") == label
    assert folds.expand(label)[0] == pasted


def test_each_paste_has_one_label() -> None:
    folds = PasteFolds()
    labels = [folds.insertion_for(text, "a") for text in (FORTY, FORTY, FORTY + "!")]
    assert labels == ["[Pasted text #1 +40 lines]", "[Pasted text #1 +40 lines]", "[Pasted text #2 +40 lines]"]
    text, spans = folds.expand(" and ".join(labels))
    assert text == f"{FORTY} and {FORTY} and {FORTY}!"
    assert [text[start:end] for start, end in spans] == [FORTY, FORTY, FORTY + "!"]
    assert PasteFolds().fold(text, spans) == " and ".join(labels)


def test_a_label_inside_a_paste_is_text() -> None:
    folds = PasteFolds()
    first = folds.label_for(FORTY)
    second = folds.label_for(first + FORTY)
    assert folds.expand(second)[0] == first + FORTY
    assert folds.expand("[Pasted text #9 +40 lines]") == ("[Pasted text #9 +40 lines]", [])
    assert folds.expand(first[:-1])[0] == first[:-1]


def test_line_ends_and_cursor_reports_are_normalised() -> None:
    assert normalise_paste("a\r\nb\rc\n\r\x1b[12;40Rd\x1b[1m") == "a\nb\nc\n\nd\x1b[1m"


@pytest.mark.parametrize(
    "pasted", ["/quit", "exit", "quit\n", " /quit\n", "//comment", "/set temp 1", "/q\nb", "/tmp/x", "/ 2", "x /quit"]
)
def test_the_beginning_of_a_paste_is_text(pasted: str) -> None:
    for folds, text in ((PasteFolds(), None), (folding := PasteFolds(), folding.label_for(pasted))):
        shown = folds.insertion_for(pasted, "") if text is None else text
        sent = folds.to_message(shown)
        assert parse(sent) is None
        assert not message_syntax.is_exit_word(sent)
        assert message_text(sent).lstrip() == pasted.lstrip()


def test_a_typed_slash_before_a_paste_is_a_command() -> None:
    folds = PasteFolds()
    assert folds.insertion_for("quit", "/") == "quit"
    assert folds.to_message("/system " + folds.label_for(FORTY)) == f"/system {FORTY}"


@pytest.mark.parametrize(
    ("typed", "sent", "is_open"),
    [
        ('"""\na\n"""', "a", False),
        ('"""a"""', "a", False),
        ('"""\n\na\n\n"""  ', "\na\n", False),
        ('"""', None, True),
        ('"""\na', None, True),
        ('""""', None, True),
        ('a """b"""', None, False),
        ('"""\n/quit\n"""', "//quit", False),
        ('""""""', "", False),
    ],
)
def test_blocks(typed: str, sent: str | None, is_open: bool) -> None:
    assert message_syntax.is_block_open(typed) == is_open
    assert PasteFolds().to_message(typed) == (typed if sent is None else sent)


def test_the_external_editor_may_change_pastes_and_the_text_around_them() -> None:
    folds = PasteFolds()
    label = folds.label_for("/quit " + FORTY)
    before = f"{label} and {folds.label_for('x' * 1000)}"
    whole, _ = folds.expand(before)
    assert folds.restore_labels(whole, before) == before
    assert folds.restore_labels(f"new {whole}", before) == f"new {before}"
    changed = whole.replace("line 7\n", "")
    assert folds.restore_labels(changed, before) == "/" + changed.replace(
        "x" * 1000, "[Pasted text #2 +1,000 characters]"
    )
    assert folds.restore_labels("/quit", "typed") == "/quit"


def test_a_label_before_the_cursor_is_found() -> None:
    folds = PasteFolds()
    label = folds.label_for(FORTY)
    assert folds.label_at_end(f"a {label}") == label
    assert folds.label_at_end(f"{label} ") is None
    assert folds.label_at_end("[Pasted text #7 +40 lines]") is None


@settings(max_examples=count(100, 20), deadline=None)
@given(st.lists(st.tuples(TEXTS, st.booleans()), max_size=6))
def test_folding_is_lossless(parts: list[tuple[str, bool]]) -> None:
    folds = PasteFolds()
    shown = "".join(folds.label_for(text + "!") if folded else text for text, folded in parts)
    text, spans = folds.expand(shown)
    again = PasteFolds()
    assert again.expand(again.fold(text, spans))[0] == text
    assert folds.fold(text, spans) == shown or "[Pasted" in "".join(text for text, _ in parts)


def test_at_signs_attach_files_only_outside_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("secret")
    folds = PasteFolds()
    pasted = "see @notes, (@notes) and @nothing by a@notes\n" * 20
    composed = compose(folds.to_message(f"sum up {folds.label_for(pasted)}"))
    assert composed.text == f"sum up {pasted}"
    assert composed.attachments == ()
    assert len(compose(folds.to_message("sum up " + folds.insertion_for("@notes", "sum up "))).attachments) == 1
    assert folds.to_message("/system " + folds.label_for(pasted)) == f"/system {pasted}"
