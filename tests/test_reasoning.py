"""Splitting replies into thought and answer."""

from __future__ import annotations

import random

import pytest

from qwchat.reasoning import ReasoningSplitter, ReasoningStart, ReplyParts, split_reply

PIECES = ("<think>", "</think>", "<", "/", "think", ">", "</th", "<thi", " ", "\n\n", "a", "b c", "\u200d", "é", "漢")


@pytest.mark.parametrize(
    ("start", "text", "thought", "answer"),
    [
        ("none", "<think>\na</think>b", "", "<think>\na</think>b"),
        ("none", " </think> b", "", " </think> b"),
        ("optional", "\n<think>\na b\n</think>\n\nc d\n", "a b", "c d\n"),
        ("optional", "<think>\n\n</think>\n\nc", "", "c"),
        ("optional", "<think>never closed </thin", "never closed </thin", ""),
        ("optional", "  c <think>d</think>", "", "  c <think>d</think>"),
        ("optional", " <thin", "", " <thin"),
        ("optional", "", "", ""),
        ("open", "\na b\n</think>\n\nc", "a b", "c"),
        ("open", "</think>c", "", "c"),
        ("open", "<think>\na</think>c", "a", "c"),
        ("open", "never closed\n", "never closed", ""),
        ("open", " <thi", "<thi", ""),
        ("open", "a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_a_reply_is_split_at_its_tags(start: ReasoningStart, text: str, thought: str, answer: str) -> None:
    assert split_reply(text, start) == ReplyParts(thought, answer)


@pytest.mark.parametrize("start", ["none", "optional", "open"])
def test_any_pieces_give_the_same_parts(start: ReasoningStart) -> None:
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(12)))
        splitter, thought, answer, rest = ReasoningSplitter(start), "", "", text
        while rest:
            size = rng.randint(1, 5)
            piece = splitter.push(rest[:size])
            assert not (answer and piece.thought)
            thought, answer, rest = thought + piece.thought, answer + piece.answer, rest[size:]
        end = splitter.flush()
        assert ReplyParts(thought + end.thought, answer + end.answer) == split_reply(text, start), text
        assert text.endswith(answer + end.answer)


def test_the_state_tells_what_the_next_text_belongs_to() -> None:
    splitter = ReasoningSplitter("optional")
    states = []
    for piece in ("\n", "<think>", "a", "</think>", "b"):
        states.append((splitter.undecided, splitter.thinking, splitter.has_thought))
        splitter.push(piece)
    states.append((splitter.undecided, splitter.thinking, splitter.has_thought))
    before, opened, closed = (True, False, False), (False, True, True), (False, False, True)
    assert states == [before, before, opened, opened, closed, closed]
