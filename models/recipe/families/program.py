"""Help on every command, option, chat command, key and exit code of qwchat."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from ..phrasing import vary
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
OPTION = (
    "What does the option {name} do?",
    "What is the {name} option?",
    "Explain the {name} option.",
    "the {name} option",
    "What does the {name} option do?",
    "What is the option {name} for?",
    "What is the default of {name}?",
    "What values does {name} take?",
    "What is the range of {name}?",
    "What does qwchat {name} do?",
)
COMMAND = ("What does the {name} command do?", "What does the command {name} do?", "Explain the command {name}.")
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


@cache
def topics() -> tuple[dict[str, Any], ...]:
    """Options, then commands."""
    return tuple(load("help_options")["topic"] + load("help_commands")["topic"])


@cache
def codes() -> tuple[dict[str, Any], ...]:
    """The exit codes."""
    return tuple(load("help_exit_codes")["code"])


def shapes(name: str) -> tuple[str, ...]:
    """The questions that fit a name: an option, a command or any other."""
    if name.startswith("-"):
        return NAMED + OPTION
    if name.startswith(("/", "qwchat ")):
        return NAMED + COMMAND
    return NAMED


def draw(rng: random.Random) -> Turn:
    """One question on the program."""
    if rng.random() < 0.08:
        code = rng.choice(codes())
        return Turn(vary(rng, rng.choice(CODE), {"name": code["code"]}), code["answer"])
    topic = rng.choice(topics())
    if topic["asks"] and rng.random() < 0.6:
        return Turn(vary(rng, rng.choice(topic["asks"])), topic["answer"].strip())
    name = rng.choice(topic["names"])
    return Turn(vary(rng, rng.choice(shapes(name)), {"name": name}), topic["answer"].strip())
