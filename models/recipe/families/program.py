"""Help on qwchat: the purpose of each command, and which help explains options, keys and chat commands."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from ..phrasing import fill, vary
from ..turns import Turn, load

NAMED = (
    "What does {name} do?",
    "What is {name}?",
    "What is {name} for?",
    "How do I use {name}?",
    "How does {name} work?",
    "Explain {name}.",
    "Explain {name} to me.",
    "Tell me about {name}.",
    "{name}",
    "help {name}",
    "What does {name} mean?",
    "[Show|Give] me an example of {name}.",
    "When do I need {name}?",
    "help with {name}",
    "Describe {name}.",
    "I need help with {name}.",
)
CODE = (
    "What does exit code {name} mean?",
    "What is exit code {name}?",
    "exit code {name}",
    "Explain exit code {name}.",
    "qwchat [ended|failed|stopped|exited] with code {name}, why?",
    "Why did qwchat exit with [code|status] {name}?",
    "What does [status|return code|exit status] {name} mean?",
    "I got exit code {name}.",
)


VARIABLE = "QWCHAT_"


@cache
def topics() -> tuple[dict[str, Any], ...]:
    """Return the topics that have an answer of their own."""
    return tuple(load("help")["topic"])


@cache
def codes() -> tuple[dict[str, Any], ...]:
    """Return the exit codes."""
    return tuple(load("help_exit_codes")["code"])


@cache
def elsewhere() -> dict[str, Any]:
    """Return the questions that the help of the program answers, by kind."""
    return load("help_elsewhere")


@cache
def explained() -> frozenset[str]:
    """Return the names that have a topic of their own."""
    return frozenset(name for topic in topics() for name in topic["names"])


def shapes(name: str) -> tuple[str, ...]:
    """Return the questions about a name that has a topic."""
    if name.startswith("-"):
        return NAMED + tuple(elsewhere()["option"]["named"])
    if name.startswith(("/", "qwchat ")):
        return NAMED + tuple(elsewhere()["slash"]["named"][:3])
    return NAMED


def word(rng: random.Random, known: str) -> str:
    """Draw a word for a name: from a list, joined from common words, or made of syllables."""
    names = elsewhere()["names"]
    luck = rng.random()
    if luck < 0.5:
        return str(rng.choice(names[known]))
    if luck < 0.9:
        return "-".join(rng.sample(names["words"], rng.choice((1, 2, 2, 3) if known == "options" else (1, 1, 2))))
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))


def name(rng: random.Random, kind: str) -> str:
    """Draw a name that has no topic: of an option, a chat command, a command or a variable."""
    while True:
        if kind == "option":
            short = rng.random() < 0.12
            found = f"-{rng.choice(elsewhere()['names']['letters'])}" if short else f"--{word(rng, 'options')}"
        elif kind == "slash":
            found = f"/{word(rng, 'slashes')}"
        elif kind == "command":
            found = f"qwchat {word(rng, 'commands')}"
        else:
            found = VARIABLE + word(rng, "options").upper().replace("-", "_")
        if found not in explained():
            return found


def pointer(rng: random.Random) -> Turn:
    """Draw a question whose answer is the help of the program."""
    kind = rng.choices(("option", "slash", "command", "options", "variable"), (40, 30, 9, 15, 6))[0]
    table = elsewhere()[kind]
    answer = table["answer"].strip()
    if kind == "options":
        command = rng.choice(table["commands"])
        shape = rng.choice((*table["asks"], *NAMED[:4]))
        called = f"qwchat {command} {word(rng, 'commands')}"
        slots = {"name": command if shape in table["asks"] else called, "option": name(rng, "option")}
        return Turn(vary(rng, shape, slots), fill(answer, {"name": command}))
    named = kind == "variable" or rng.random() < (1.0 if kind == "command" else 0.5)
    if named:
        shape = rng.choice(table["asks"] if kind == "variable" else (*NAMED, *table["named"]))
    else:
        shape = rng.choice(table["asks"])
        shape = fill(
            shape, {slot: rng.choice(table[slot]) for slot in ("setting", "task", "key", "deed") if slot in table}
        )
    return Turn(vary(rng, shape, {"name": name(rng, kind)}), answer)


def draw(rng: random.Random) -> Turn:
    """Draw one question on the program."""
    luck = rng.random()
    if luck < 0.07:
        code = rng.choice(codes())
        return Turn(vary(rng, rng.choice(CODE), {"name": code["code"]}), code["answer"])
    if luck < 0.45:
        return pointer(rng)
    topic = rng.choice(topics())
    if topic["asks"] and rng.random() < 0.6:
        return Turn(vary(rng, rng.choice(topic["asks"])), topic["answer"].strip())
    called = rng.choice(topic["names"])
    return Turn(vary(rng, rng.choice(shapes(called)), {"name": called}), topic["answer"].strip())
