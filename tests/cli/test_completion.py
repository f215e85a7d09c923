"""Shell completion, requested as each shell does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwchat.conversation.session_store import SessionStore
from tests.cli.runs import FAKE, environment, run
from tests.clocks import PATIENCE_SECONDS
from tests.tiers import some

SHELLS = ("bash", "zsh", "fish", "powershell")


def asked(shell: str, line: str, models: Path, variables: dict[str, str] | None = None) -> list[str]:
    """Return the suggestions for `line` typed in a shell, one per line."""
    words = line.split(" ")
    said = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        "powershell": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1]},
    }[shell]
    ran = run(models=models, variables=said | {"_QWCHAT_COMPLETE": f"complete_{shell}"} | (variables or {}))
    assert ran.stderr == b""
    return ran.stdout.decode().splitlines()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("mini-q8", "Qwen2-7B-Instruct-q4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("shell", some(SHELLS, 4))
def test_commands_and_live_model_names_are_offered(shell: str, models: Path) -> None:
    def names(line: str) -> str:
        return "\n".join(asked(shell, line, models))

    assert "convert" in names("qwchat conv")
    for line in ("qwchat -m ", "qwchat chat ", "qwchat show Q", "qwchat verify Q"):
        assert "Qwen2-7B-Instruct-q4" in names(line), line
    assert "mini-q8" not in names("qwchat -m Q")
    assert "q8" in names("qwchat --kv ")
    assert "q4-small" in names("qwchat convert --preset q4")
    assert "--max-tokens" in names("qwchat --max")


def test_settings_their_values_and_personas_are_offered(models: Path) -> None:
    persona = models / "home" / "qwchat" / "personas" / "poet.toml"
    persona.parent.mkdir(parents=True)
    persona.write_text("temp = 1")
    for line, offered in (
        ("qwchat config s", ["show", "set"]),
        ("qwchat config set top", ["top-p", "top-k"]),
        ("qwchat config set render ", ["auto", "plain", "markdown", "default"]),
        ("qwchat --as p", ["poet"]),
        ("qwchat chat --render m", ["markdown"]),
    ):
        found = asked("bash", line, models, {"QWCHAT_CONFIG": ""})
        assert sorted(found) == sorted(offered), line


def test_sessions_are_offered_by_name_or_id(models: Path) -> None:
    environment(models)
    store = SessionStore(models / "home" / "sessions")
    for name, question in (("sums", "What is 2+2?"), ("", "Name a sea.\x1b[2J")):
        file = store.create("mini", name=name)
        file.append([{"node": {"id": 1, "parent": None, "role": "user", "content": question}}])
        file.close()
    other = next(entry.id for entry in store.entries() if not entry.name)
    for line in ("qwchat --resume ", "qwchat chat --session ", "qwchat sessions show ", "qwchat sessions rm "):
        assert sorted(asked("bash", line, models)) == sorted(["sums", other]), line
    assert asked("bash", "qwchat sessions export s", models) == ["sums"]
    assert "\x1b" not in "".join(asked("fish", "qwchat sessions grep x ", models))


def test_a_description_is_complete_on_one_line(models: Path) -> None:
    assert len(asked("zsh", "qwchat --speculate", models)) == 1
    assert asked("fish", "qwchat --temp", models) == [
        "--temp\tSampling temperature (0 = greedy) [0 to 5]",
        "--template-var\tVariable of the chat template, in JSON (repeatable)",
    ]
    assert asked("fish", "qwchat comple", models) == ["completion\tPrint the completion script of a shell"]


def test_file_names_are_completed_by_the_shell(models: Path) -> None:
    for line in ("qwchat -f ", "qwchat --json-schema ", "qwchat chat --json-schema ", "qwchat convert "):
        assert asked("bash", line, models) == [""], line


def test_gguf_files_of_the_working_folder_are_offered(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "work").mkdir()
    for name in ("tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf", "notes.txt"):
        (models / "work" / name).touch()
    monkeypatch.chdir(models / "work")
    assert asked("bash", "qwchat -m ti", models) == ["tiny-00001-of-00002.gguf"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_script(shell: str, tmp_path: Path) -> None:
    ran = run("completion", shell, models=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert f"_QWCHAT_COMPLETE=complete_{shell}" in ran.stdout.decode().replace('" = "', "=").replace(' = "', "=")


def test_an_unknown_shell_is_refused(tmp_path: Path) -> None:
    ran = run("completion", "tcsh", models=tmp_path)
    assert ran.returncode == 2
    assert b"'tcsh' is not one of" in ran.stderr


def program(folder: Path) -> Path:
    """Create a command named qwchat, as an installation does."""
    path = folder / "qwchat"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    path.chmod(0o755)
    return path


def in_shell(shell: str, script: str, models: Path) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    program(models)
    variables = environment(models) | {"PATH": f"{models}:{os.environ['PATH']}"}
    ran = subprocess.run(
        [path, "-c", script], env=variables, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert ran.stderr == ""
    return ran.stdout


def test_a_real_bash_completes(models: Path) -> None:
    script = (
        'eval "$(qwchat completion bash)"; COMP_WORDS=(qwchat chat Q); COMP_CWORD=2; _qwchat_completion qwchat; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert in_shell("bash", script, models) == "Qwen2-7B-Instruct-q4\n"


def test_a_real_fish_completes(models: Path) -> None:
    shown = in_shell("fish", "qwchat completion fish | source; complete -C 'qwchat chat Q'", models)
    assert shown.split("\t")[0].strip() == "Qwen2-7B-Instruct-q4"


def test_a_real_zsh_takes_the_script(models: Path) -> None:
    script = (
        'autoload -Uz compinit; compinit -D; eval "$(qwchat completion zsh)"; '
        'words=(qwchat chat Q); CURRENT=3; _arguments() { print -r -- "$@" }; _qwchat_completion'
    )
    assert "Qwen2-7B-Instruct-q4" in in_shell("zsh", script, models)


HOSTILE = r"x \$(touch hit) \`touch hit` '; touch hit; ' \"; touch hit"


def said(models: Path, name: str, question: str) -> None:
    environment(models)
    file = SessionStore(models / "home" / "sessions").create("mini", name=name)
    file.append([{"node": {"id": 1, "parent": None, "role": "user", "content": question}}])
    file.close()


def test_zsh_does_not_run_a_title(models: Path) -> None:
    said(models, "sums", HOSTILE)
    script = (
        f'cd {models}; autoload -Uz compinit; compinit -D; eval "$(qwchat completion zsh)"; '
        # As zsh's _arguments does with such an action.
        '_arguments() { local action=${1#*: :}; eval "ws=( ${action[3,-3]} )"; print -rl -- $ws }; '
        "words=(qwchat --session s); CURRENT=3; _qwchat_completion"
    )
    shown = in_shell("zsh", script, models)
    assert shown.startswith("sums:x $(touch hit)")
    assert shown.count("\n") == 1
    assert not (models / "hit").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_title_with_markup_does_not_break_completion(shell: str, models: Path) -> None:
    said(models, "sums", "what is [/b]?")
    (found,) = asked(shell, "qwchat --session ", models)
    assert "sums" in found
    assert ("[/b]" in found) is (shell != "bash")


@pytest.mark.slow
def test_names_with_spaces_are_one_word_in_bash(models: Path) -> None:
    said(models, "two words", "hi")
    (models / "it's").mkdir()
    (models / "it's" / "manifest.json").write_text("{}")
    script = (
        'eval "$(qwchat completion bash)"; for typed in tw \'"tw\'; do '
        'COMP_WORDS=(qwchat --session "$typed"); COMP_CWORD=2; _qwchat_completion qwchat; '
        'printf "%s\\n" "${COMPREPLY[@]}"; done'
    )
    assert in_shell("bash", script, models) == "two\\ words\ntwo words\n"
    assert "two words" in in_shell("fish", "qwchat completion fish | source; complete -C 'qwchat --session t'", models)
    assert asked("bash", "qwchat -m i", models) == [""]
