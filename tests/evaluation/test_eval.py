"""`qwchat eval` on the built-in model: figures, results that continue, refusals."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import quant
from qwchat.cli.app import run_app
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.guard import run_guarded
from qwchat.models_folder import embedded_checkpoint
from tests.cli.runs import call
from tests.clocks import PATIENCE_SECONDS, wait_for
from tests.docs.pages import place_program
from tests.evaluation.choice_tasks import write_tasks
from tests.tiers import count

TASKS = ("elementary_mathematics_test.csv", "law_val.csv", "plain.jsonl")
QUESTIONS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for preset in ("q4", "dense"):
        list(quant.convert(embedded_checkpoint(), folder / preset, preset=preset))
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path)


def run(*arguments: str | Path, models: Path) -> tuple[int, str, str]:
    """Run `qwchat eval` with the real engine in this process; return exit code, standard output and error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    streams = {"stdin": io.TextIOWrapper(io.BytesIO(b"")), "stdout": out, "stderr": err}
    words = ("eval", *map(str, arguments), "--threads", "1")
    with mock.patch.multiple(sys, **streams), mock.patch.dict(os.environ, QWCHAT_MODELS=str(models)):
        code = run_guarded(lambda: run_app(words, Dependencies()), debug=False)
    for stream in (out, err):
        stream.flush()
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def evaluated(*arguments: str | Path, models: Path) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json", models=models)
    assert code == ExitCode.OK, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_json_has_figures_of_files_and_subjects(models: Path, tasks: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.jsonl"
    files = [tasks / name for name in TASKS]
    found = evaluated("q4", *files, "--shots", "1", "-o", result, models=models)
    header, *answers, last = map(json.loads, result.read_text().splitlines())
    assert len(answers) == QUESTIONS
    assert found["model"]["fingerprint"] == header["model"]["fingerprint"]
    assert [each["name"] for each in found["tasks"]] == list(TASKS)
    assert [each["questions"] for each in found["tasks"]] == [3, 2, 3]
    assert list(found["subjects"]) == ["elementary_mathematics", "law", "plain", "sums"]
    assert found["settings"]["shots"] == 1
    right = [each["answer"] == each["prediction"] for each in answers]
    assert found["correct"] == sum(right)
    assert found["acc"]["value"] == sum(right) / QUESTIONS
    means = []
    for name, figures in found["subjects"].items():
        own = [ok for ok, each in zip(right, answers, strict=True) if each["subject"] == name]
        means.append(sum(own) / len(own))
        assert (figures["questions"], figures["acc"]["value"]) == (len(own), means[-1])
    assert found["macro"] == {"value": sum(means) / 4, "interval": None}
    assert found["acc_norm"] is None
    assert found["tasks"][2]["acc_norm"] is not None
    for each in answers:
        best = max(range(len(each["log_likelihoods"])), key=each["log_likelihoods"].__getitem__)
        assert each["prediction"] == "ABCD"[best]
    assert last["result"] == {key: value for key, value in found.items() if key not in ("model", "output", "against")}


def test_the_table_has_a_row_for_each_task(models: Path, tasks: Path) -> None:
    code, out, _ = run("q4", *(tasks / name for name in TASKS[:2]), "--limit", "2", "--chat", models=models)
    assert code == ExitCode.OK
    title, _, head, *rows = out.splitlines()
    assert title.startswith("q4: ")
    assert title.endswith(" bits per weight, 4 questions, 0 examples in each prompt, chat template")
    assert head.split() == ["task", "questions", "accuracy", "95", "%", "interval"]
    assert [row.split("  ")[0] for row in rows] == [
        "elementary_mathematics_test",
        "law_val",
        "all questions",
        "mean of 2 subjects",
    ]


@pytest.mark.parametrize("chat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stopped_run_continues_to_the_same_bytes(models: Path, tasks: Path, tmp_path: Path, chat: bool) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    arguments = ["q4", *(tasks / name for name in TASKS), "--shots", "1", *(["--chat"] if chat else [])]
    first = evaluated(*arguments, "-o", whole, models=models)
    data = whole.read_bytes()
    places = [0, 5, data.index(b"\n"), data.index(b"\n") + 1, len(data) - 1, len(data)]
    places += [int(len(data) * share) for share in (0.3, 0.55, 0.8)]
    for place in places[:: count(1, 4)]:
        part.write_bytes(data[:place])
        found = evaluated(*arguments, "-o", part, models=models)
        assert part.read_bytes() == data
        assert found == first | {"output": str(part)}


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(models: Path, tasks: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    task = tmp_path / "many.jsonl"
    task.write_text((tasks / "plain.jsonl").read_text() * 100)
    evaluated("q4", task, "-o", whole, models=models)
    (tmp_path / "bin").mkdir()
    place_program(tmp_path / "bin")
    command = [str(tmp_path / "bin" / "qwchat"), "eval", "q4", str(task), "-o", str(part), "--threads", "1"]
    for lines in (1, 40, 120):
        process = subprocess.Popen(command, env={**os.environ, "QWCHAT_MODELS": str(models)}, stderr=subprocess.DEVNULL)
        wait_for(lambda wanted=lines: part.exists() and part.read_bytes().count(b"\n") > wanted, "answers")
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
        assert part.read_bytes() != whole.read_bytes()
    evaluated("q4", task, "-o", part, models=models)
    assert part.read_bytes() == whole.read_bytes()


def test_a_result_is_compared_with_that_of_another_model(models: Path, tasks: Path, tmp_path: Path) -> None:
    files = [tasks / name for name in TASKS]
    other = evaluated("dense", *files, "-o", tmp_path / "dense.jsonl", models=models)
    found = evaluated("q4", *files, "--against", tmp_path / "dense.jsonl", models=models)
    against = found["against"]
    assert against["model"] == {"name": "dense", "fingerprint": other["model"]["fingerprint"]}
    assert against["acc"] == other["acc"]["value"]
    assert against["difference"]["value"] == pytest.approx(found["acc"]["value"] - other["acc"]["value"])
    _, out, _ = run("dense", *files, "--against", tmp_path / "dense.jsonl", models=models)
    assert out.splitlines()[-1] == "difference    +0.0 (+0.0 to +0.0) percentage points"


def test_a_damaged_model_answers_nothing_into_a_result(models: Path, tasks: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "q4", tmp_path / "models" / "q4")
    with (tmp_path / "models" / "q4" / "weights.bin").open("r+b") as weights:
        weights.seek(1000)
        weights.write(bytes(64))
    result = tmp_path / "result.jsonl"
    code, _, err = run("q4", tasks / "plain.jsonl", "-o", result, models=tmp_path / "models")
    assert code == ExitCode.MODEL
    assert "is damaged" in err
    assert result.read_bytes().count(b"\n") == 1


def test_results_of_something_else_are_refused_and_kept(models: Path, tasks: Path, tmp_path: Path) -> None:
    result, task = tmp_path / "result.jsonl", tasks / "plain.jsonl"
    evaluated("q4", task, "-o", result, models=models)
    lines = result.read_bytes().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(task.read_text().replace("Who are you?", "Who is it?"))

    def refused(*arguments: str | Path) -> str:
        kept = result.read_bytes()
        code, out, err = run(*arguments, models=models)
        assert (code, out, err.count("\n")) == (ExitCode.USAGE, "", 1)
        assert result.read_bytes() == kept
        return err

    for arguments, message in (
        (("dense", task), "belongs to another model: give another file, or remove it"),
        (("q4", changed), "belongs to other questions or examples"),
        (("q4", task, "--limit", "2"), "belongs to other questions or examples"),
        (("q4", task, "--shots", "1"), "belongs to other questions or examples"),
        (("q4", task, "--chat"), "belongs to other settings"),
        (("q4", task, "--kv", "q8"), "belongs to other settings"),
    ):
        assert message in refused(*arguments, "-o", result)
    result.write_bytes(b"".join(lines[:-1]))
    assert "is incomplete: finish that evaluation first" in refused("q4", task, "--against", result)


def test_prompts_that_do_not_fit_have_their_own_exit_code(models: Path, tasks: Path) -> None:
    code, out, err = run("q4", tasks / "plain.jsonl", "--ctx", "16", models=models)
    assert (code, out) == (ExitCode.PROMPT_TOO_LONG, "")
    assert "plain.jsonl, line 2: question and examples have " in err
    assert "--ctx N allows a longer context" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.csv",), "nowhere.csv does not exist; is . the right folder?"),
        (("x.txt",), "x.txt has an unknown form"),
        (("x.csv", "--shots", "-1"), "--shots must be at least 0, not -1"),
        (("x.csv", "--limit", "0"), "--limit must be at least 1, not 0"),
        (("x.csv", "--shots-file", "y.csv"), "--shots-file gives examples that no prompt has: add --shots K"),
        (
            ("good.csv", "--shots", "1"),
            "there is no good_dev.csv with examples for good.csv: name it with --shots-file",
        ),
        (("bad.csv",), "bad.csv, line 1: the answer '\\x1b[31m' is not one of the options (A to D)"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_opened(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text("Q?,1,2,3,4,A\n")
    Path("bad.csv").write_text("Q?,1,2,3,4,\x1b[31m\n")
    done = call("eval", "mini", *arguments, models=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1
