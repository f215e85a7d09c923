"""`qwchat doctor`: state, text and remedy of each check."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from qwchat.cli import doctor
from qwchat.cli.dependencies import Dependencies
from qwchat.store.cards import Card
from tests.cli.runs import call, environment, run

NAMES = [
    "program",
    "processor",
    "threads",
    "memory",
    "GPU",
    "kernels",
    "models",
    "default model",
    "recommended",
    "disk",
    "settings",
    "sessions",
    "terminal",
]


def checks(models: Path) -> dict[str, dict[str, str]]:
    ran = call("doctor", "--json", models=models)
    said = json.loads(ran.stdout)
    assert said["ok"] is (ran.returncode == 0)
    return {check["name"]: check for check in said["checks"]}


def test_every_check_has_a_line_and_a_damaged_default_model_is_an_error(tmp_path: Path) -> None:
    ran = run("doctor", models=tmp_path)
    lines = ran.stdout.decode().splitlines()
    assert [name for name in NAMES if not any(line[9:].startswith(name) for line in lines)] == []
    # The scripted model has an empty manifest.
    assert ran.returncode == 1
    broken = next(number for number, line in enumerate(lines) if line.startswith("error"))
    assert lines[broken].startswith("error    default model  mini is damaged: ")
    assert lines[broken + 1] == f"{'':24}convert it again"
    assert ran.stderr == b""


def test_the_built_in_model_passes_all_checks(tmp_path: Path) -> None:
    with mock.patch("tests.cli.runs.environment", lambda models, **script: {"QWCHAT_MODELS": str(models / "empty")}):
        said = checks(tmp_path)
    assert said["default model"] == {
        "name": "default model",
        "state": "ok",
        "found": "mini, converted on first use",
        "remedy": "",
    }
    assert list(said) == NAMES
    assert "SIMD level" in said["processor"]["found"]
    assert str(os.cpu_count()) in said["threads"]["found"]
    assert said["terminal"]["found"] == "none: replies are plain text, and the chat reads plain lines"


@pytest.mark.parametrize(
    ("memory", "bandwidth", "card", "found"),
    [
        (8.1e9, 30e9, None, "qwen2.5:7b at q4: 4.7 GB, at most 7.3 tok/s (qwchat pull qwen2.5:7b)"),
        (
            16.5e9, 35e9, None,
            "qwen2.5:7b at q4: 4.7 GB, at most 8.5 tok/s (qwchat pull qwen2.5:7b); the largest that fits is "
            "qwen2.5:14b at q4: 9.0 GB, at most 4.2 tok/s",
        ),
        (
            33e9, 90e9, None,
            "qwen2.5:14b at q4: 9.0 GB, at most 11 tok/s (qwchat pull qwen2.5:14b); the largest that fits is "
            "qwen2.5:32b at q4: 19.0 GB, at most 4.9 tok/s",
        ),
        (33e9, None, None, "qwen2.5:32b at q4: 19.0 GB (qwchat pull qwen2.5:32b)"),
        (0.5e9, 30e9, None, "mini; no model of the catalogue fits"),
        (
            16.5e9, 35e9, Card("NVIDIA GeForce RTX 3060", 12_600_000_000, 360e9),
            "qwen2.5:14b at q4: 10.1 GB, at most 42 tok/s on NVIDIA GeForce RTX 3060 (qwchat pull qwen2.5:14b)",
        ),
        (
            8.1e9, 30e9, Card("tiny", 500_000_000, 100e9),
            "qwen2.5:7b at q4: 4.7 GB, at most 7.3 tok/s (qwchat pull qwen2.5:7b)",
        ),
    ],
)  # fmt: skip
def test_the_recommended_model(
    monkeypatch: pytest.MonkeyPatch, memory: float, bandwidth: float | None, card: Card | None, found: str
) -> None:
    monkeypatch.setattr("qwchat.cpu.memory.total_memory", lambda: int(memory))
    monkeypatch.setattr("qwchat.cpu.kernels.thread_counts.default_threads", lambda: 2)
    dependencies = Dependencies(quick_bandwidth=lambda threads: bandwidth, card=lambda: card)
    assert doctor._recommended_model(dependencies) == ("ok", found, "")


def test_problems_are_warnings_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    monkeypatch.setattr("qwchat.cpu.memory.available_memory", lambda: 100 << 20)
    monkeypatch.setattr("quant.native.simd_level.current_level", lambda: "portable")
    monkeypatch.setattr("quant.native.simd_level.supported_levels", lambda: ("avx2", "portable"))
    said = checks(tmp_path)
    for name, found, remedy in (
        ("threads", "load 99.0", "other programs use the processor: replies will be slower"),
        ("disk", "5.2 MB free for models", "a converted 7B model needs 4.6 GB"),
        ("memory", "105 MB free", "close other programs, or use a small model and a short context (--ctx)"),
        ("processor", "SIMD level portable", "unset QWCHAT_SIMD, which forces portable, to use the faster avx2"),
    ):
        assert (said[name]["state"], said[name]["remedy"]) == ("warning", remedy)
        assert found in said[name]["found"]


def test_a_failing_check_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_SIMD", "abacus")
    monkeypatch.setattr("quant.native.simd_level.current_level", doctor_level)
    monkeypatch.setattr(shutil, "disk_usage", failing)
    said = checks(tmp_path)
    assert said["processor"]["state"] == "error"
    assert said["processor"]["found"].startswith("QWCHAT_SIMD='abacus' is not a SIMD level")
    assert said["disk"] == {
        "name": "disk",
        "state": "warning",
        "found": "check failed: [Errno 5] broken",
        "remedy": "",
    }
    assert list(said) == NAMES


def test_a_file_instead_of_a_folder_is_a_warning(tmp_path: Path) -> None:
    environment(tmp_path)
    (tmp_path / "home" / "sessions").write_text("")
    assert checks(tmp_path)["sessions"]["state"] != "ok"
    (tmp_path / "file").write_text("")
    assert not doctor._is_writable(tmp_path / "file")
    assert doctor._is_writable(tmp_path / "none" / "yet")


def doctor_level() -> str:
    from quant.errors import ArgumentError

    raise ArgumentError("QWCHAT_SIMD='abacus' is not a SIMD level; choose one of avx2")


def failing(path: Path) -> object:
    raise OSError(5, "broken")


def test_settings_and_sessions_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    said = checks(tmp_path)
    assert said["settings"]["found"] == f"none set; their file would be {tmp_path}/config/config.toml"
    assert said["sessions"]["found"] == f"0 in {tmp_path}/home/sessions"
    with mock.patch.dict(os.environ, {"QWCHAT_TEMP": "9", "QWCHAT_MODEL": ""}):
        assert checks(tmp_path)["settings"]["found"] == "QWCHAT_TEMP must be from 0 to 5, not 9"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("temp = 0.5\ntemperature = 1\n")
    (tmp_path / "home" / "sessions" / "abc").mkdir(parents=True)
    (tmp_path / "home" / "sessions" / "abc" / "session.jsonl").write_text(
        '{"format": "qwchat-session", "version": 99}\n'
    )
    said = checks(tmp_path)
    assert said["settings"]["state"] == "error"
    assert said["settings"]["found"].startswith(f"{tmp_path}/config/config.toml:2: there is no setting 'temperature'")
    assert said["sessions"]["state"] == "warning"
    assert said["sessions"]["found"] == f"1 in {tmp_path}/home/sessions, 1 unreadable: abc"


def test_the_terminal_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen:
        encoding = "latin-1"

        def isatty(self) -> bool:
            return True

    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", Screen())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    assert doctor._terminal() == (
        "warning",
        "TERM=xterm, 80 × 24, input, output, errors, latin1",
        "emoji and non-Latin scripts need UTF-8: set LANG, for example to C.UTF-8",
    )
    Screen.encoding = "UTF-8"
    assert doctor._terminal()[0] == "ok"
    monkeypatch.setenv("TERM", "dumb")
    assert doctor._terminal()[2] == "the chat reads plain lines here: set TERM to the type of your terminal"
