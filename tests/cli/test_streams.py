"""The rules of the standard streams, each one a pipe or a terminal."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pyte
import pytest

from tests.cli.runs import FAKE, environment, run
from tests.cli.streams import COLUMNS, ROWS, Kind, run_on
from tests.clocks import PATIENCE_SECONDS
from tests.starter import starter
from tests.tiers import some

PLAIN = ("plain text", "日本語 👩‍👩‍👧 é", "tab\tand\r\nreturn", "\x1b]0;title\x07\x9b31m", "")
KINDS: tuple[Kind, ...] = ("pipe", "terminal")
REPLY = "# Title\n\nSome **bold** text.\n\n```py\nx = 1\n```"
LONG = "word " * 600  # enough tokens to show progress during prefill


def screen_of(data: bytes) -> list[str]:
    """Return the rows of a terminal after `data`."""
    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(screen).feed(data)
    return [line.rstrip() for line in screen.display if line.strip()]


@pytest.mark.parametrize(("stdin", "stdout", "stderr"), some(itertools.product(KINDS, repeat=3), 5))
def test_each_stream_is_handled_independently(tmp_path: Path, stdin: Kind, stdout: Kind, stderr: Kind) -> None:
    seen = run_on(
        "-p", LONG, models=tmp_path, stdin=stdin, stdout=stdout, stderr=stderr, replies=[REPLY], chunk_seconds=0.25
    )
    assert seen.code == 0
    if stdout == "pipe":
        assert seen.out == REPLY.encode() + b"\n"
    else:
        shown = "\n".join(screen_of(seen.out))
        assert all(piece in shown for piece in ("Title", "Some", "bold", "text.", "x = 1"))
        assert b"tok/s" not in seen.out
        assert b"reading" not in seen.out
    figures = screen_of(seen.err) if stderr == "terminal" else seen.err.decode().splitlines()
    assert len(figures) == 1, "progress is cleared"
    assert figures[0].startswith("0.12 s to first token · ")
    assert b"Title" not in seen.err
    if stderr == "pipe":
        assert not any(control in seen.err for control in (b"\x1b", b"\r", b"reading"))
    else:
        assert b"reading" in seen.err


@pytest.mark.parametrize("stderr", KINDS)
@pytest.mark.parametrize("flag", ["--json", "--jsonl"])
def test_json_is_printed_on_a_terminal_too(tmp_path: Path, flag: str, stderr: Kind) -> None:
    seen = run_on("-p", "hi", flag, models=tmp_path, stdout="terminal", stderr=stderr, replies=["\x1b[31mred"])
    assert b"\x1b" not in seen.out
    assert json.loads(seen.out.splitlines()[-1])["text"] == "\x1b[31mred"
    assert seen.err == b""


@pytest.mark.parametrize(
    ("arguments", "variables", "bold", "colour"),
    [
        ((), {}, True, True),
        ((), {"NO_COLOR": "1"}, True, False),
        ((), {"TERM": "dumb"}, False, False),
        (("--color", "never"), {}, False, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True, True),
        (("--render", "plain"), {}, False, False),
    ],
)
def test_output_on_a_terminal(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], bold: bool, colour: bool
) -> None:
    seen = run_on("-p", "hi", *arguments, models=tmp_path, stdout="terminal", variables=variables, replies=[REPLY])
    styles = seen.out.replace(b"\x1b[", b"\0").split(b"\0")[1:]
    numbers = {number for style in styles if b"m" in style for number in style.split(b"m")[0].split(b";")}
    assert (b"1" in numbers) is bold
    assert any(number[:1] in b"39" and len(number) == 2 for number in numbers) is colour
    if not (bold or colour):
        assert b"\x1b" not in seen.out


@pytest.mark.parametrize("choice", ["auto", "never"])
@pytest.mark.parametrize(
    "reply", ["plain text", "日本語 👩‍👩‍👧 é", "tab\tand\r\nreturn", "\x1b]0;title\x07\x9b31m", ""]
)
def test_a_pipe_gets_the_bytes_of_the_reply(tmp_path: Path, choice: str, reply: str) -> None:
    seen = run_on("-p", "hi", "--color", choice, models=tmp_path, stderr="terminal", replies=[reply])
    assert seen.out == reply.encode() + b"\n"


def test_a_question_is_read_from_the_pipe_not_from_the_terminal(tmp_path: Path) -> None:
    piped = run_on("-p", "Why?", models=tmp_path, given=b"some text")
    assert piped.out == b"echo: some text\n\nWhy?\n"
    typed = run_on("-p", "Why?", models=tmp_path, stdin="terminal", given=b"typed ahead\r")
    assert typed.out == b"echo: Why?\n"
    asked = run_on("-p", "-", models=tmp_path, stdin="terminal", given=b"from the keys\r")
    assert asked.out == b"echo: from the keys\n"
    assert asked.err.decode().splitlines()[0] == "type the question, then Ctrl-D on a line of its own"
    for arguments, what in ((("-f", "-"), "text"), (("--json-schema", "-"), "JSON schema")):
        asked = run_on("-p", "hi", *arguments, models=tmp_path, stdin="terminal", given=b"{}\r", replies=["0"])
        assert asked.out == b"0\n"
        assert asked.err.decode().splitlines()[0] == f"type the {what}, then Ctrl-D on a line of its own"


@pytest.mark.parametrize("stderr", KINDS)
def test_errors_go_to_standard_error_on_one_line(tmp_path: Path, stderr: Kind) -> None:
    seen = run_on("-p", "hi", "--temp", "9", models=tmp_path, stdout="terminal", stderr=stderr)
    assert (seen.code, seen.out) == (2, b"")
    shown = screen_of(seen.err) if stderr == "terminal" else seen.err.decode().splitlines()
    assert len(shown) == 1
    assert shown[0].startswith("qwchat: error: --temp must be")


@pytest.mark.slow
def test_quiet_prints_nothing_on_a_terminal(tmp_path: Path) -> None:
    seen = run_on("-q", "-p", LONG, models=tmp_path, stderr="terminal", replies=["Fine."], chunk_seconds=0.25)
    assert (seen.out, seen.err) == (b"Fine.\n", b"")


# One of each kind: replies, tables, JSON, data for other programs, and output of the parser.
CODE = "```py\nx = 1\n```"
PRINTING = (
    ("-p", "hi"),
    ("-p", "hi", "--json"),
    ("-p", "hi", "--jsonl"),
    ("-p", "hi", "-x"),
    ("-p", "hi", "-n", "2"),
    ("chat", "-p", "hi"),
    ("--help",),
    ("--version",),
    ("convert", "--help"),
    ("sessions", "export", "--help"),
    ("list",),
    ("doctor",),
    ("config",),
    ("config", "get", "temp"),
    ("config", "path"),
    ("sessions", "list"),
    ("sessions", "show", "kept"),
    ("sessions", "grep", "hi"),
    ("sessions", "export", "kept"),
    ("completion", "bash"),
    ("completion", "fish"),
    ("verify", "--json"),
)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a models folder with a session named kept beside it."""
    folder = tmp_path_factory.mktemp("closed")
    assert run("-q", "-p", "hi", "--session", "kept", models=folder).returncode == 0
    return folder


@pytest.mark.parametrize("arguments", some(PRINTING, 4), ids=" ".join)
def test_output_without_a_reader_is_code_141(sessions: Path, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    errors, stderr = os.pipe()
    with Path(os.devnull).open() as stdin, os.fdopen(errors, "rb") as error_output:
        variables = environment(sessions, replies=[CODE])
        program = starter().start(arguments, variables, Path.cwd(), (stdin.fileno(), writer, stderr))
        os.close(writer)
        os.close(stderr)
        check_code_141(program.wait(), error_output.read())


@pytest.mark.parametrize("arguments", some(PRINTING, 12), ids=" ".join)
@pytest.mark.parametrize("how", ["closed", "without a reader", "head -c0"])
def test_unreadable_output_is_code_141(sessions: Path, tmp_path: Path, arguments: tuple[str, ...], how: str) -> None:
    program = [sys.executable, str(FAKE), *arguments]
    if how == "closed":
        program = ["/bin/sh", "-c", '"$@" >&-', "sh", *program]
    elif how == "head -c0":
        # The reader is closed before the program begins.
        gone = tmp_path / "gone"
        os.mkfifo(gone)
        reading = f"{{ head -c0; exec <&-; echo >'{gone}'; }}"
        script = f"{{ read -r <'{gone}'; \"$@\"; }} | {reading}; exit ${{PIPESTATUS[0]}}"
        program = ["/bin/bash", "-c", script, "bash", *program]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run(
            program,
            env=environment(sessions, replies=[CODE]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if how == "head -c0" else writer,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    finally:
        os.close(writer)
    check_code_141(ran.returncode, ran.stderr)


def check_code_141(code: int, error_output: bytes) -> None:
    """Check for the exit code of a broken pipe, without a message."""
    assert code == 141
    assert b"Traceback" not in error_output
    assert b"Exception ignored" not in error_output
    assert b"Broken pipe" not in error_output


def test_commands_without_output_do_not_need_stdout(tmp_path: Path) -> None:
    variables = environment(tmp_path) | {"QWCHAT_CONFIG": str(tmp_path / "config")}
    for arguments, code in ((("config", "set", "temp", "0.5"), 0), (("-p", "hi", "--temp", "9"), 2)):
        shell = ["/bin/sh", "-c", '"$@" >&-', "sh", sys.executable, str(FAKE), *arguments]
        ran = subprocess.run(shell, env=variables, stderr=subprocess.PIPE, check=False)
        assert ran.returncode == code, ran.stderr


@pytest.mark.parametrize("closed", some(["<&- >&- 2>&-", "<&-", ">&-", "2>&-", "<&- 2>&-"], 3))
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    program = [sys.executable, str(FAKE), "-p", "hi", "--session", "kept"]
    shell = ["/bin/sh", "-c", f'"$@" {closed}', "sh", *program]
    ran = subprocess.run(shell, env=environment(tmp_path), capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    assert ran.returncode == (141 if ">&-" in closed.replace("2>&-", "") else 0)
    [session] = (tmp_path / "home" / "sessions").glob("*/session.jsonl")
    events = [json.loads(line) for line in session.read_text().splitlines()]
    assert any(event.get("node", {}).get("content") == "hi" for event in events)
