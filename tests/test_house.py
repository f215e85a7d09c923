"""The rules of the house that a program can check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwchat.chat.commands import COMMANDS as COMMANDS_OF_THE_CHAT
from tests.clocks import PATIENCE_SECONDS
from tests.starter import REAL, ran

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FIRST_COMMAND = 'python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/qwchat -p "What can you do?"'
SECOND_COMMAND = "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/python -m pytest"
COMMANDS = ("chat", "convert", "show", "verify", "list", "bench", "doctor", "completion", "sessions", "config")
GROUPS = {
    "sessions": ("list", "show", "grep", "rm", "export"),
    "config": ("show", "get", "set", "edit", "check", "path"),
}
SOURCES = ("quant", "qwchat", "models/recipe", "benchmarks", "tests")
MOST_LINES = 450


def help_of(*command: str) -> str:
    """What `qwchat COMMAND --help` prints, on a wide screen and without colours."""
    environment = {"COLUMNS": "200", "TERM": "dumb", "PATH": "", "NO_COLOR": "1"}
    done = ran([*command, "--help"], environment, entry=REAL)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def options_in(text: str) -> set[str]:
    """Long options named in a text, --help aside."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help"}


def section(heading: str) -> str:
    """The table of README whose head row begins with `heading`."""
    lines = README.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading}"))
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return "\n".join(lines[start:end])


@pytest.mark.parametrize("command", [FIRST_COMMAND, SECOND_COMMAND])
def test_readme_gives_the_two_commands(command: str) -> None:
    assert f"\n{command}\n" in README


def test_readme_lists_the_commands_there_are() -> None:
    named = set(re.findall(r"`qwchat ([a-z]+)", section("command")))
    assert named == set(COMMANDS)
    shown = help_of()
    assert [name for name in COMMANDS if not re.search(rf"^\W*{name}\b", shown, re.MULTILINE)] == []


def test_readme_lists_the_options_of_the_chat() -> None:
    documented = options_in(section("options of the one-shot"))
    assert documented == options_in(help_of()) - {"--version"}
    assert documented - options_in(help_of("chat")) <= {"--prompt", "--model", "--count"}


@pytest.mark.parametrize("command", ["convert", "show", "verify", "list", "bench", "doctor", "completion"])
def test_readme_lists_the_options_of_the_other_commands(command: str) -> None:
    table = section("options of the other commands")
    row = next(line for line in table.splitlines() if f"`{command}`" in line.split("|")[1])
    assert options_in(row) == options_in(help_of(command))


@pytest.mark.parametrize(("group", "command"), [(group, command) for group in GROUPS for command in GROUPS[group]])
def test_readme_lists_the_commands_and_options_of_groups(group: str, command: str) -> None:
    table = section("options of the other commands")
    row = next(line for line in table.splitlines() if f"`{group} {command}`" in line.split("|")[1])
    assert options_in(row) == options_in(help_of(group, command))
    assert re.search(rf"^\W*{command}\b", help_of(group), re.MULTILINE)


def test_readme_lists_the_commands_of_the_chat() -> None:
    rows = [line.replace("\\|", "¦") for line in section("in the chat").splitlines()[2:]]
    listed = [[cell.strip().strip("`").replace("¦", "|") for cell in row.strip("|").split("|")] for row in rows]
    assert listed == [[command.usage, command.summary] for command in COMMANDS_OF_THE_CHAT]


def test_links_between_documents_lead_somewhere() -> None:
    for document in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for target, place in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8")):
            path = (document.parent / target) if target else document
            assert path.exists(), f"{document.name} links to {target}"
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if place else []
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not place or place in slugs, f"{document.name} links to #{place}"


def test_the_threat_model_names_tests_that_exist() -> None:
    text = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 40
    for file, test in named:
        source = (REPOSITORY / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test} does not exist"
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::test_\w+`", row)] == []


def test_import_contracts() -> None:
    checked = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_slow_tests_and_tiers(pytestconfig: pytest.Config) -> None:
    assert any(line.startswith("slow:") for line in pytestconfig.getini("markers"))
    runs = [line for line in (REPOSITORY / ".ci" / "run").read_text().splitlines() if "-m pytest" in line]
    assert ["--slow" in line for line in runs] == [False, True, True]  # As README says, everything, the oracle.


def test_no_source_has_a_branch_for_windows() -> None:
    """The program takes file locks, forks and sets up terminals as POSIX does: Linux and macOS run it."""
    foreign = re.compile(r"""["']win32["']|os\.name\b|msvcrt|winreg|prompt_toolkit\.(?:in|out)put\.win""")
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}"
        for folder in ("quant", "qwchat", "benchmarks")
        for file in sorted((REPOSITORY / folder).rglob("*.py"))
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if foreign.search(line)
    ]
    assert found == []
    assert "on Linux or macOS" in README


@pytest.mark.parametrize("folder", SOURCES)
def test_files_are_short(folder: str) -> None:
    files = (REPOSITORY / folder).rglob("*.py")
    long = {str(file): count for file in files if (count := len(file.read_text("utf-8").splitlines())) > MOST_LINES}
    assert long == {}
