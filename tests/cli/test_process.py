"""Behaviour that needs a real process: start-up, signals, broken pipes, interpreter exit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from quant.policy import bit_choices, conversion_spec, group_size_choices
from quant.presets import IMPORTED_PRESET, PRESETS
from tests.cli.runs import FAKE, call, environment, run
from tests.clocks import PATIENCE_SECONDS, count_sleeps, wait_for
from tests.tiers import count

HEAVY = ("numba", "numpy", "tokenizers", "rich", "rich.markdown", "prompt_toolkit", "jinja2")
HELP_PACKAGES = {"annotated_doc", "click", "quant", "qwchat", "shellingham", "typer"}
HELP_MODULES = 250  # There are about 165, and each one slows every start.


def start(*arguments: str, models: Path, **script: object) -> subprocess.Popen[bytes]:
    """Start the command line, and return when the program has begun."""
    started = models / "started"
    started.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, str(FAKE), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(models, **script) | {"QWCHAT_FAKE_STARTED": str(started)},
    )
    while not started.exists() and process.poll() is None:
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("chat", "--help"), ("convert", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\nbefore = set(sys.modules)\nfrom qwchat.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    print(*(set(sys.modules) - before), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True)
    imported = set(result.stderr.decode().split())
    assert imported.isdisjoint(HEAVY)
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names <= HELP_PACKAGES
    assert len(imported) <= HELP_MODULES
    assert result.stdout.startswith((b"Usage: qwchat", b"qwchat "))


def test_help_of_convert_names_every_preset(tmp_path: Path) -> None:
    shown = call("convert", "--help", models=tmp_path).stdout.decode()
    _, presets = shown.split("Presets:")
    assert [line.split()[0] for line in presets.strip().splitlines()] == [*PRESETS, IMPORTED_PRESET]
    assert "|".join(PRESETS) in shown
    for name in PRESETS:
        conversion_spec(name)
    for choices in (bit_choices(), group_size_choices()):
        assert "|".join(map(str, choices)) in shown


@pytest.mark.slow
def test_a_reply_streams_through_a_pipe(tmp_path: Path) -> None:
    with start("-q", "-p", "hi", models=tmp_path, replies=["first second third"], token_seconds=0.5) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"first"
        assert process.poll() is None
        assert process.stdout.read() == b" second third\n"


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    command = f"'{sys.executable}' '{FAKE}' -q -p hi </dev/null | head -c 5; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["/bin/bash", "-c", command],
        env=environment(tmp_path, replies=["word " * 2000]),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (result.stdout, result.stderr, result.returncode) == (b"word ", b"", 141)


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        (">&-", 141, b""),
        ("2>&-", 0, b""),
        ("<&-", 0, b""),
        ("> /dev/full", 1, b"qwchat: error: No space left on device\n"),
        ("2> /dev/full", 0, b""),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path: Path, redirection: str, code: int, error: bytes) -> None:
    quiet = "" if "2>" in redirection else "-q"
    command = f"'{sys.executable}' '{FAKE}' {quiet} -p hi {redirection}"
    result = subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (code, error)


def test_ctrl_c_during_a_reply_keeps_the_text(tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(500))
    with start("-p", "hi", models=tmp_path, replies=[words], token_seconds=0.02) as process:
        assert process.stdout is not None
        head = os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        said = (head + out).decode()
        assert process.returncode == 130
        assert words.startswith(said.removesuffix("\n"))
        assert said.endswith("\n")
        assert err.decode().count("\n") == 1
        assert "s to first token" in err.decode()


def test_ctrl_c_in_json_gives_the_reply_so_far(tmp_path: Path) -> None:
    with start("-p", "hi", "--jsonl", models=tmp_path, replies=["word " * 500], token_seconds=0.02) as process:
        assert process.stdout is not None
        events = iter(process.stdout.readline, b"")
        next(line for line in events if b'"text"' in line)
        process.send_signal(signal.SIGINT)
        last = list(events)[-1]
        assert process.wait(PATIENCE_SECONDS) == 130
    assert json.loads(last)["event"] == "done"
    assert json.loads(last)["finish_reason"] == "cancelled"
    assert json.loads(last)["text"]


@pytest.mark.slow
def test_ctrl_c_at_any_moment(tmp_path: Path) -> None:
    drawn = random.Random(1)
    script = {"replies": ["word " * 200], "token_seconds": 0.005, "load_seconds": 0.2, "chunk_seconds": 0.05}
    for _ in range(count(10, 3)):
        with start("-p", "long " * 1000, models=tmp_path, **script) as process:
            time.sleep(drawn.uniform(0.0, 1.2))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 130, err
        assert b"Traceback" not in err, err.decode()
        assert b"Exception ignored" not in err, err.decode()


def test_ctrl_c_in_a_finaliser_is_not_lost() -> None:
    program = (
        "import sys, time\nfrom qwchat.cli.main import _rearm_interrupt\nsys.unraisablehook = _rearm_interrupt\n"
        "class Thing:\n    def __del__(self):\n        raise KeyboardInterrupt\n"
        "try:\n    Thing()\n    for _ in range(1000):\n        time.sleep(0.01)\n"
        "except KeyboardInterrupt:\n    print('raised')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE_SECONDS, check=True)
    assert (result.stdout, result.stderr) == (b"raised\n", b"")


def test_two_signals_end_the_program_at_once(tmp_path: Path) -> None:
    never = 10 * PATIENCE_SECONDS
    began = tmp_path / "began"
    script = {"replies": ["one two"], "token_seconds": never, "token_file": str(began)}
    with start("--jsonl", "-p", "hi", models=tmp_path, **script) as process:
        assert process.stdout is not None
        next(line for line in iter(process.stdout.readline, b"") if b'"prefill"' in line)
        wait_for(began.exists, "the first token")  # Ctrl-C is sent only after that.
        slept = count_sleeps(process.pid)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: count_sleeps(process.pid) > slept, "the signal to be heard")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert err == b"qwchat: interrupted\n"


def test_a_chat_without_a_terminal_reads_lines(tmp_path: Path) -> None:
    lines = b"hello\n/set seed 5\n\n/nothing\nlast without newline"
    result = run("chat", "-q", models=tmp_path, stdin=lines)
    assert result.returncode == 0
    assert result.stdout == b"echo: hello\necho: last without newline\n"
    assert result.stderr.decode().splitlines() == [
        "seed 5",
        "qwchat: error: there is no command /nothing: /help lists the commands (start with // to send it as a message)",
    ]


def test_a_chat_refuses_binary_input(tmp_path: Path) -> None:
    result = run("chat", "-q", models=tmp_path, stdin=b"fine\nbad \xff\n")
    assert result.returncode == 2
    assert result.stdout == b"echo: fine\n"
    assert result.stderr == b"qwchat: error: the input is not UTF-8 text (byte 5 of a line): convert it\n"


@pytest.mark.slow
def test_help_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    commands = ("chat", "convert", "show", "verify", "list", "bench", "doctor", "completion")
    of_sessions = [("sessions", name) for name in ("list", "show", "grep", "rm", "export")]
    of_config = [("config", name) for name in ("show", "get", "set", "edit", "check", "path")]
    for words in ((), *((name,) for name in (*commands, "sessions", "config")), *of_sessions, *of_config):
        with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
            lines = call(*words, "--help", models=tmp_path).stdout.decode().splitlines()
        assert max(map(len, lines)) <= 80, words
        assert not [line for line in lines[1:] if line.endswith("...")], words
        assert not [wrong for wrong in ("[[", "...}") if wrong in lines[0]], words
