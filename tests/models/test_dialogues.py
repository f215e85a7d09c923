"""The generator of the mini model's dialogues: fixed by its seed, without contradictions, about the whole program."""

from __future__ import annotations

import random
import re

import pytest

from models.recipe import dialogues
from models.recipe.chatml import ChatML
from models.recipe.evaluate import held_out
from models.recipe.families import program
from models.recipe.phrasing import expand, fill
from models.recipe.recipe import MODEL, Recipe

OPTIONS = """
--model -m --prompt -p --system -s --file -f --count -n --max-tokens --temp --top-p --top-k --min-p --repeat-penalty
--presence-penalty --frequency-penalty --stop --seed --ctx --kv --threads --device --gpu-layers --json --jsonl
--render --color --quiet -q --debug --version --help --preset --bits --group-size --dry-run --resume --force
--prompt-tokens --new-tokens --depth --rounds
"""
COMMANDS = ("qwchat", "qwchat chat", "qwchat convert", "qwchat show", "qwchat list", "qwchat bench")
CHAT_COMMANDS = ("/help", "/clear", "/system", "/set", "/retry", "/save", "/quit")


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("name", [*OPTIONS.split(), *COMMANDS, *CHAT_COMMANDS])
def test_every_part_of_the_program_has_help(name: str) -> None:
    known = {known for topic in program.topics() for known in topic["names"]}
    assert name in known


def test_every_exit_code_has_help() -> None:
    assert {code["code"] for code in program.codes()} == {0, 1, 2, 3, 4, 5, 6, 130}


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
    first, again, other = recipe.draw(3, words), recipe.draw(3, words), recipe.draw(4, words)
    drawn = [next(first) for _ in range(20)]
    assert drawn == [next(again) for _ in range(20)]
    assert drawn != [next(other) for _ in range(20)]


def test_held_out_conversations_are_not_those_of_training() -> None:
    recipe, chatml = Recipe.load(), ChatML.load(MODEL)
    found = held_out(recipe, dialogues.MEMORY, 1, chatml)
    unseen = {next(found).turns for _ in range(50)}
    seen = recipe.draw(0, chatml.measure())
    assert unseen.isdisjoint(next(seen).turns for _ in range(200))


def test_memory_conversations_end_with_a_question_about_what_was_told() -> None:
    rng = random.Random(5)
    dialogue = dialogues.remember(rng, Recipe.load().phases[0].mixture, 300, words)
    assert len(dialogue.turns) > 2
    assert dialogue.messages()[-1] == {"role": "user", "content": dialogue.turns[-1].ask}


def test_alternatives_and_slots() -> None:
    rng = random.Random(1)
    assert {expand(rng, "[a|b] [c|d[e|f]]?") for _ in range(200)} == {
        f"{x} {y}?" for x in "ab" for y in ("c", "de", "df")
    }
    assert expand(rng, "Tell me [|] more .") == "Tell me more."
    assert fill("{a} + {b}", {"a": 1, "b": 2}) == "1 + 2"
