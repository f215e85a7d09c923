"""Dialogues of the mini model: determined by the seed, without contradictions, and complete on the program."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re

import pytest

from models.recipe import dialogues
from models.recipe.chatml import ChatML
from models.recipe.evaluate import held_out
from models.recipe.families import program
from models.recipe.phrasing import expand, fill
from models.recipe.recipe import MODEL, Recipe


def count_words(text: str) -> int:
    return len(text.split())


def test_help_answers_have_closed_code_blocks() -> None:
    for topic in program.topics():
        assert topic["answer"].count("```") % 2 == 0, topic["names"]


@pytest.mark.parametrize("family", sorted(dialogues.FAMILIES))
def test_a_question_has_one_answer(family: str) -> None:
    rng = random.Random(7)
    answers: dict[str, str] = {}
    for _ in range(2000):
        turn = dialogues.FAMILIES[family](rng)
        key = (turn.ask if family == "echo" else turn.ask.lower()).strip(" ?.!")
        assert answers.setdefault(key, turn.answer) == turn.answer, turn.ask
        assert not re.search(r"[\[\]|{}]", turn.ask), turn.ask
        assert turn.answer == turn.answer.strip()


def test_the_same_seed_draws_the_same_dialogues() -> None:
    recipe = Recipe.load()
    first, again, other = recipe.draw(3, count_words), recipe.draw(3, count_words), recipe.draw(4, count_words)
    drawn = [next(first) for _ in range(20)]
    assert drawn == [next(again) for _ in range(20)]
    assert drawn != [next(other) for _ in range(20)]


def test_held_out_conversations_do_not_depend_on_the_last_phase() -> None:
    recipe, chatml = Recipe.load(), ChatML.load(MODEL)
    assert recipe.phases[-1].from_step > recipe.compared
    shorter = dataclasses.replace(recipe, phases=recipe.phases[:-1])
    several = [list(itertools.islice(held_out(each, dialogues.MEMORY, 1, chatml), 5)) for each in (recipe, shorter)]
    assert several[0] == several[1]


def test_held_out_conversations_are_not_those_of_training() -> None:
    recipe, chatml = Recipe.load(), ChatML.load(MODEL)
    found = held_out(recipe, dialogues.MEMORY, 1, chatml)
    unseen = {next(found).turns for _ in range(50)}
    seen = recipe.draw(0, chatml.measure())
    assert unseen.isdisjoint(next(seen).turns for _ in range(200))


def test_memory_conversations_end_with_a_question() -> None:
    rng = random.Random(5)
    dialogue = dialogues.remember(rng, Recipe.load().phases[0].mixture, 300, count_words)
    assert len(dialogue.turns) > 2
    assert dialogue.messages()[-1] == {"role": "user", "content": dialogue.turns[-1].ask}


def test_alternatives_and_slots() -> None:
    rng = random.Random(1)
    assert {expand(rng, "[a|b] [c|d[e|f]]?") for _ in range(200)} == {
        f"{x} {y}?" for x in "ab" for y in ("c", "de", "df")
    }
    assert expand(rng, "Tell me [|] more .") == "Tell me more."
    assert fill("{a} + {b}", {"a": 1, "b": 2}) == "1 + 2"
