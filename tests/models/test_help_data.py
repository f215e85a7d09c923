"""The training data of the embedded model on the program agree with the program."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from typer import Exit

from models.recipe.families import program
from models.recipe.phrasing import INNERMOST, expand, fill
from models.recipe.turns import load
from qwchat.chat.commands import COMMANDS
from qwchat.cli.app import expand_arguments, make_command_line
from qwchat.cli.config import _NON_SETTING_VARIABLES
from qwchat.cli.exit_codes import ExitCode
from qwchat.settings.specs import SETTING_SPECS

OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*(?![\w-])")
NEWER_COMMANDS = {
    "qwchat estimate",
    "qwchat eval",
    "qwchat export",
    "qwchat perplexity",
    "qwchat pull",
    "qwchat rm",
    "qwchat serve",
}
"""Commands that mini was trained before: it names the help for them."""
UNSEEN_COMMANDS = {"qwchat calibrate", "qwchat sensitivity"}
"""Commands whose names are not in its training either: it treats them like any invented name."""
SLASH = re.compile(r"`(/[a-z-]+)")


@cache
def commands() -> dict[str, Any]:
    """Return every command and group of the command line by its words, such as `qwchat sessions rm`."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for word, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {word}", inner)

    return dict(walk("qwchat", make_command_line(completing=False)))


def options(command: Any) -> set[str]:
    """Return the options of a command, including short ones and negations."""
    own = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    return {flag for flag in own if flag.startswith("-")} | {"--help", "-h"}


def texts() -> list[str]:
    """Return every answer on the program, followed by its questions and names."""
    found = [" ".join([topic["answer"], *topic["asks"], *topic["names"]]) for topic in program.topics()]
    found += [code["answer"] for code in program.codes()]
    found += [table["answer"] for table in program.elsewhere().values() if "answer" in table]
    return found + [fact["answer"] for name in ("about", "facts_quant", "facts_qwen2") for fact in load(name)["fact"]]


def names() -> set[str]:
    return {name for topic in program.topics() for name in topic["names"]}


def examples(language: str) -> list[str]:
    """Return the lines of all code blocks in a language."""
    blocks = re.findall(rf"```{language}\n(.*?)\n```", "\n".join(texts()), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_has_its_purpose() -> None:
    first = {name for name in commands() if name.count(" ") < 2} - {"qwchat"} - NEWER_COMMANDS - UNSEEN_COMMANDS
    assert sorted((first | {"qwchat"}) - names()) == []
    table = next(topic["answer"] for topic in program.topics() if "the commands" in topic["names"])
    assert set(re.findall(r"^\| `(qwchat [a-z]+)` \|", table, re.MULTILINE)) == first
    assert {f"qwchat {name}" for name in program.elsewhere()["options"]["commands"]} == first


def test_newer_commands_are_names_that_mini_refers_to_the_help_or_terms_that_it_explains() -> None:
    explained = " ".join(fact["answer"] for fact in load("facts_quant")["fact"]).lower()
    for name in NEWER_COMMANDS:
        assert name in commands()
        word = name.removeprefix("qwchat ")
        assert word in program.elsewhere()["names"]["commands"] or f"{word} says" in explained


@pytest.mark.parametrize("kind", ["option", "slash", "command", "variable"])
def test_invented_names_have_no_topic_and_refer_to_the_help(kind: str) -> None:
    rng = random.Random(3)
    drawn = {program.name(rng, kind) for _ in range(3000)}
    assert len(drawn) > 500
    assert drawn.isdisjoint(names())
    answer = program.elsewhere()[kind]["answer"]
    assert "--help`" in answer or "`/help`" in answer or "`qwchat config`" in answer
    assert not re.search(r"\b(no|not|unknown|exist)", answer), "a name that comes later may be drawn today"


def test_later_options_need_no_topic() -> None:
    """Options, chat commands and settings without a topic are covered by the answers that refer to the help."""
    flags = {flag for command in commands().values() for flag in options(command) if flag == flag.lower()}
    with_topic = {name for name in names() if name.startswith(("-", "/"))}
    stable = {"-p", "--prompt", "-m", "--model", "-c", "--continue", "-h", "--help", "--version", "/help", "/quit"}
    assert with_topic == stable
    assert stable - {"/help", "/quit"} <= flags


def test_every_exit_code_has_help() -> None:
    assert {code["code"] for code in program.codes()} == {int(code) for code in ExitCode}
    table = next(topic["answer"] for topic in program.topics() if "the exit codes" in topic["names"])
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == {int(code) for code in ExitCode}


def test_every_named_command_exists() -> None:
    first = {name.split()[1] for name in commands() if " " in name}
    named = {word for text in texts() for word in re.findall(r"`qwchat ([a-z]+)", text)}
    assert sorted(named - first) == []
    assert [name for name in names() if name.startswith("qwchat ") and name not in commands()] == [
        "qwchat without arguments"
    ]


def test_every_named_option_exists() -> None:
    known = {flag for command in commands().values() for flag in options(command)}
    known |= {flag for command in COMMANDS for flag in OPTION.findall(f"{command.argument} {command.details}")}
    unknown = {flag for text in texts() for flag in OPTION.findall(text)} - known
    assert sorted(unknown) == []


def test_every_named_chat_command_exists() -> None:
    known = {f"/{command.name}" for command in COMMANDS}
    assert sorted({name for text in texts() for name in SLASH.findall(text)} - known) == []
    typed = [line.split()[0] for line in examples("text") if line.startswith("/")]
    assert sorted(set(typed) - known) == []
    assert [name for name in names() if name.startswith("/") and name not in known] == []


def test_every_named_variable_is_read() -> None:
    known = (
        {each.variable for each in SETTING_SPECS}
        | {f"QWCHAT_{name}" for name in _NON_SETTING_VARIABLES}
        | set(_NON_SETTING_VARIABLES)
    )
    named = {name for text in texts() for name in re.findall(r"QWCHAT_[A-Z_]+", text)}
    assert sorted(named - known) == []


@pytest.mark.parametrize("line", sorted(set(examples("sh"))))
def test_examples_parse(line: str) -> None:
    line = re.sub(r"\$\((qwchat [^)]*)\)", r"\1", line).replace('eval "', "").rstrip('"') if "$(" in line else line
    _, _, typed = line.partition("| ") if "| qwchat" in line else ("", "", line)
    words = shlex.split(typed)
    if words[0] == "export":
        assert words[1].startswith("QWCHAT_")
        return
    assert words[0] == "qwchat"
    command, context, left = commands()["qwchat"], None, expand_arguments(words[1:])
    try:
        while True:
            context = command.make_context("qwchat", left, parent=context)
            left = [*getattr(context, "_protected_args", []), *context.args]
            if not left:
                break
            command = command.commands[left.pop(0)]
    except Exit:
        assert {"--help", "--version"} & set(words)
        return
    for name, value in context.params.items():
        for each in SETTING_SPECS:
            if name == each.parameter and value is not None:
                for text in value if isinstance(value, list | tuple) else [str(value)]:
                    each.parse(text, each.flag)


def wordings(shape: str) -> Iterator[str]:
    """Yield every text of a shape with alternatives, as `expand` would choose them."""
    match = INNERMOST.search(shape)
    if match is None:
        yield expand(random.Random(0), shape).lower().strip(" ?.!")
        return
    for chosen in match.group(1).split("|"):
        yield from wordings(shape[: match.start()] + chosen + shape[match.end() :])


def test_no_wording_has_two_answers() -> None:
    answers: dict[str, str] = {}
    tables = [fact for name in ("about", "facts_quant", "facts_qwen2") for fact in load(name)["fact"]]
    for entry in (*program.topics(), *tables):
        named = [fill(shape, {"name": name}) for name in entry.get("names", ()) for shape in program.shapes(name)]
        for wording in (each for shape in (*entry["asks"], *named) for each in wordings(shape)):
            assert answers.setdefault(wording, entry["answer"]) == entry["answer"], wording
    assert len(answers) > 3_000
    rng = random.Random(11)
    for _ in range(30_000):
        turn = program.pointer(rng)
        assert answers.setdefault(turn.ask.lower().strip(" ?.!"), turn.answer) == turn.answer, turn.ask
