"""Spelling, counting letters and the alphabet, on a closed list of common words."""

from __future__ import annotations

import random
from functools import cache

from ..phrasing import vary
from ..turns import Turn, load

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
PLACES = ("first", "second", "third")
TIMES = {1: "once", 2: "twice", 3: "three times", 4: "four times"}
WORD = "[the word |]{w}"


@cache
def words() -> tuple[str, ...]:
    """Return the closed list."""
    return tuple(load("words")["words"].split())


def spelt(word: str) -> str:
    """Return a word letter by letter."""
    return "-".join(word)


def typed(rng: random.Random, word: str) -> str:
    """Return a word with quotation marks or without, as people write it."""
    return rng.choice((word, word, word, f'"{word}"', f"'{word}'", word.capitalize()))


def spell(rng: random.Random, word: str) -> Turn:
    """Ask to spell a word."""
    shape = "[Spell " + WORD + ".|How do you spell " + WORD + "?|How is {w} spelt?|Spell out {w}.|Can you spell {w}?]"
    return Turn(vary(rng, shape, {"w": typed(rng, word)}), f"{word} is spelt {spelt(word)}.")


def length(rng: random.Random, word: str) -> Turn:
    """Ask for the number of letters."""
    shape = (
        "[How many letters [are in|are there in|has] "
        + WORD
        + "?|Count the letters in "
        + WORD
        + ".|How long is the word {w}?|"
        "How many letters does {w} have?]"
    )
    return Turn(
        vary(rng, shape, {"w": typed(rng, word)}), f"{word} is spelt {spelt(word)}. It has {len(word)} letters."
    )


def occurrences(rng: random.Random, word: str) -> Turn:
    """Ask for the occurrences of one letter; `strawberry` comes up often, as it does with real users."""
    if rng.random() < 0.06:
        word, letter = "strawberry", "r"
    else:
        letter = rng.choice(word) if rng.random() < 0.92 else rng.choice(ALPHABET)
    count = word.count(letter)
    said = "does not occur" if count == 0 else f"occurs {TIMES[count]}"
    shape = (
        "[How many {l}['s|s| letters|] are [in|there in] " + WORD + "?|How often does [the letter |]{l} occur in {w}?|"
        "Count the letter {l} in {w}.|How many times is {l} in {w}?|How many letters {l} does {w} have?]"
    )
    ask = vary(rng, shape, {"l": rng.choice((letter, letter, letter.upper())), "w": typed(rng, word)})
    return Turn(ask, f"{word} is spelt {spelt(word)}. The letter {letter} {said}.")


def place(rng: random.Random, word: str) -> Turn:
    """Ask for one letter of a word by its position."""
    name = rng.choice((*PLACES, "last"))
    letter = word[-1] if name == "last" else word[PLACES.index(name)]
    shape = "[What|Which] is the {place} letter [of|in] " + WORD + "?"
    ask = vary(rng, shape, {"place": name, "w": typed(rng, word)})
    return Turn(ask, f"{word} is spelt {spelt(word)}. The {name} letter is {letter}.")


def backwards(rng: random.Random, word: str) -> Turn:
    """Ask to spell a word backwards."""
    shape = (
        "[Spell {w} backwards.|Reverse "
        + WORD
        + ".|What is {w} backwards?|How do you spell {w} backwards?|Write {w} backwards.]"
    )
    return Turn(
        vary(rng, shape, {"w": typed(rng, word)}),
        f"{word} is spelt {spelt(word)}. Backwards it is {spelt(word[::-1])}.",
    )


def starts(rng: random.Random, word: str) -> Turn:
    """Ask if a word starts or ends with a letter."""
    start = rng.random() < 0.5
    true = word[0] if start else word[-1]
    letter = true if rng.random() < 0.5 else rng.choice(ALPHABET)
    shape = (
        "Does " + WORD + " [start|begin] with [the letter |an |a |]{l}?" if start else "Does " + WORD + " end with {l}?"
    )
    verb = "starts" if start else "ends"
    answer = f"{word} is spelt {spelt(word)}. It {verb} with {true}."
    return Turn(vary(rng, shape, {"l": letter, "w": typed(rng, word)}), answer)


def order(rng: random.Random, word: str) -> Turn:
    """Ask which of two words comes first in the alphabet; their first letters differ."""
    other = rng.choice([w for w in words() if w[0] != word[0]])
    shape = "[Which [word |]comes first in the alphabet, {a} or {b}?|Which word is first in the alphabet, {a} or {b}?]"
    return Turn(vary(rng, shape, {"a": word, "b": other}), f"{min(word, other)} comes first.")


def letter_place(rng: random.Random, _word: str) -> Turn:
    """Ask for positions and neighbours in the alphabet."""
    i = rng.randrange(26)
    letter = ALPHABET[i]
    kind = rng.randrange(3)
    if kind == 0 and i < 25:
        return Turn(
            vary(rng, "[What|Which] letter comes after {l}?", {"l": rng.choice((letter, letter.upper()))}),
            f"{ALPHABET[i + 1]} comes after {letter}.",
        )
    if kind == 1 and i > 0:
        return Turn(
            vary(rng, "[What|Which] letter comes before {l}?", {"l": rng.choice((letter, letter.upper()))}),
            f"{ALPHABET[i - 1]} comes before {letter}.",
        )
    shape = "[What|Which] letter is number {n} [in|of] the alphabet?"
    return Turn(vary(rng, shape, {"n": i + 1}), f"Letter {i + 1} of the alphabet is {letter}.")


def list_length(rng: random.Random, _word: str) -> Turn:
    """Ask for the number of words in a list."""
    found = rng.sample(words(), rng.randint(2, 6))
    shape = "[How many words are in this list|How many words are these|Count the words|Count these words]: {list}"
    numbered = ", ".join(f"{i} {word}" for i, word in enumerate(found, 1))
    return Turn(vary(rng, shape, {"list": ", ".join(found)}), f"{numbered}: {len(found)} words.")


PARTS = (spell, length, occurrences, place, backwards, starts, order, letter_place, list_length)
WEIGHTS = (1.5, 1.5, 2.5, 2.5, 1.5, 0.8, 0.6, 1, 1)


def draw(rng: random.Random) -> Turn:
    """Draw one question on words."""
    return rng.choices(PARTS, WEIGHTS)[0](rng, rng.choice(words()))
