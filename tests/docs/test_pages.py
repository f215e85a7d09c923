"""The pages of the documentation, README and CONTRIBUTING: current, reachable, linked and readable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generator.__main__ import PAGES, stale
from tests.docs.pages import DOCS, REPOSITORY, blocks, nav, without_blocks

FIRST_COMMAND = 'python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/qwchat -p "What can you do?"'
SECOND_COMMAND = "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/python -m pytest"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
HAND_WRITTEN = [name for name in nav() if name not in PAGES and name != "log.md"]
LONGEST_PARAGRAPH = 5 * 120
LANGUAGES = {"", "chat", "console", "csv", "json", "powershell", "python", "sh", "text", "toml"}


def test_generated_pages_are_current() -> None:
    assert stale() == [], "run python -m docs.generator"


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")]
    assert sorted(nav()) == sorted(page for page in pages if not page.startswith("includes/"))


@pytest.mark.parametrize("command", [FIRST_COMMAND, SECOND_COMMAND])
def test_readme_gives_the_two_commands(command: str) -> None:
    assert f"\n{command}\n" in README


def test_readme_is_short_and_agrees_with_the_site() -> None:
    assert len(README.splitlines()) <= 100
    assert (DOCS / "includes" / "which-model.md").read_text(encoding="utf-8") in README
    assert (DOCS / "includes" / "speed.md").read_text(encoding="utf-8") in README
    assert "on Linux or macOS" in README


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md"])
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    """Check what `mkdocs build --strict` does not: links outside the site."""
    document = REPOSITORY / name
    text = without_blocks(document.read_text(encoding="utf-8"))
    for target, place in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        path = (document.parent / target) if target else document
        assert path.exists(), f"{name} links to {target}"
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if place else []
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not place or place in slugs, f"{name} links to #{place}"


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_paragraphs_are_short(name: str) -> None:
    text = without_blocks((DOCS / name).read_text(encoding="utf-8"))
    paragraphs = [part for part in re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", text) if not part.startswith("|")]
    assert [part for part in paragraphs if len(" ".join(part.split())) > LONGEST_PARAGRAPH] == []


@pytest.mark.parametrize("name", nav())
def test_blocks_have_a_language_that_is_known(name: str) -> None:
    assert {block.language for block in blocks(DOCS / name)} <= LANGUAGES


def test_the_threat_model_names_tests_that_exist() -> None:
    text = (DOCS / "internals" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 40
    for file, test in named:
        source = (REPOSITORY / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test} does not exist"
    promises = re.findall(r"^- \*\*.*\n\n    (.*)\n    { .small }", text, re.MULTILINE)
    assert len(promises) == len(re.findall(r"^- \*\*", text, re.MULTILINE)) > 40
    assert [tests for tests in promises if not re.search(r"`tests/[\w/]+\.py::test_\w+`", tests)] == []


@pytest.mark.parametrize("name", [name for name in HAND_WRITTEN if name.startswith("internals/")])
def test_modules_that_are_named_exist(name: str) -> None:
    text = without_blocks((DOCS / name).read_text(encoding="utf-8"))
    for dotted in re.findall(r"`((?:qwchat|quant)(?:\.\w+)+)`", text):
        path = Path(REPOSITORY, *dotted.split("."))
        parent = path.parent.with_suffix(".py") if not path.parent.is_dir() else path.parent / "__init__.py"
        known = path.is_dir() or path.with_suffix(".py").is_file()
        assert known or re.search(rf"\b{path.name}\b", parent.read_text(encoding="utf-8")), f"{dotted} does not exist"


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_files_that_are_named_exist(name: str) -> None:
    text = without_blocks((DOCS / name).read_text(encoding="utf-8"))
    named = re.findall(r"`((?:tests|docs|benchmarks|models|\.ci)/[\w/.-]+)`", text)
    named += [match.replace(".", "/") + ".py" for match in re.findall(r"python -m (benchmarks\.\w+)", text)]
    assert [file for file in named if not (REPOSITORY / file).exists()] == []
