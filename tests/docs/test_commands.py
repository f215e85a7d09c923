"""Every command of README and the documentation, run with the embedded model in an empty home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generator.json_output import OTHERS
from qwchat.models_folder import embedded_checkpoint
from tests.clocks import PATIENCE_SECONDS
from tests.docs.pages import DOCS, REPOSITORY, Block, blocks, nav, place_program

BLOCKS = [block for file in (REPOSITORY / "README.md", *(DOCS / name for name in nav())) for block in blocks(file)]
FILES = {
    "notes.md": "# Notes\n\nThe meeting is on Monday.\n",
    "two words.txt": "Two words.\n",
    "src/app.py": "def main() -> None:\n    print(2 + 3)\n\n\nmain()\n",
    "schema.json": '{"type": "object", "properties": {"colour": {"enum": ["blue", "grey"]}}, "required": ["colour"]}',
    ".config/qwchat/personas/poet.toml": "",  # Filled in from the page.
    "quiz_test.csv": "",
    "quiz_dev.csv": "",
}

pytestmark = pytest.mark.slow


def chosen(*languages: str) -> list[Block]:
    """Return the blocks in these languages that a test runs."""
    return [block for block in BLOCKS if block.language in languages and block.runs]


def place(block: Block) -> str:
    return block.place


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a home with the files that the pages mention, the program on its path, and the model converted."""
    folder = tmp_path_factory.mktemp("home")
    persona = next(block.text for block in BLOCKS if block.page.endswith("personas.md") and block.language == "toml")
    shown = {block.title: block.text for block in BLOCKS if block.language == "csv"}
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text or shown.get(name, persona))
    (folder / "bin").mkdir()
    place_program(folder / "bin")
    subprocess.run(["git", "init", "-q", folder], check=True)
    assert shell('qwchat -q -p "What is 7 + 8?"', folder).returncode == 0
    return folder


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QWCHAT_", "XDG_"))}
    simd = {name: os.environ[name] for name in ("QWCHAT_SIMD",) if name in os.environ}
    models = {"QWCHAT_MODELS": str(home / "models")}  # A checkout would use its own folder.
    return kept | simd | models | {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "TERM": "dumb"}


def shell(script: str, home: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script in the home as a person's shell would, and stop at its first failure."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=home,
        env=environment(home),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("block", chosen("sh"), ids=place)
def test_commands_run(block: Block, home: Path) -> None:
    done = shell(block.text, home)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", chosen("console"), ids=place)
def test_commands_print_what_is_shown(block: Block, home: Path) -> None:
    command, _, shown = block.text.partition("\n")
    assert command.startswith("$ ")
    done = shell(command[2:], home)
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, shown.rstrip("\n")), done.stderr


@pytest.mark.parametrize("block", chosen("chat"), ids=place)
def test_lines_of_chats_are_understood(block: Block, home: Path) -> None:
    done = shell("qwchat chat --no-save", home, block.text + "\n")
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr, done.stderr


@pytest.mark.parametrize("block", chosen("python"), ids=place)
def test_python_runs(block: Block, home: Path) -> None:
    shutil.copytree(embedded_checkpoint(), home / "models" / "mini", dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=home,
        env=environment(home) | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", OTHERS)
def test_json_of_other_commands_has_the_keys_that_are_listed(command: str, home: Path) -> None:
    more = {
        "convert": f"{embedded_checkpoint()} --dry-run",
        "bench": "--rounds 1 --prompt-tokens 32 --new-tokens 8",
        "eval": "mini quiz_test.csv",
        "perplexity": f"mini {embedded_checkpoint() / 'config.json'}",
        "calibrate": f"mini {embedded_checkpoint() / 'config.json'} -o mini.statistics",
        "sensitivity": "mini -o mini.json --tokens 32 --by layer",
        "export": "mini exported --to gguf --dry-run",
    }
    done = shell(f"qwchat {command} {more.get(command, '')} --json", home)
    assert done.returncode == 0, done.stderr
    assert tuple(json.loads(done.stdout)) == OTHERS[command]
