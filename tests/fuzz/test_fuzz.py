"""Run the fuzzer briefly, and test that it detects the faults it looks for.

`python -m tests.fuzz` runs more cases.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import corpus, server
from tests.fuzz.base import Base, make_checkpoints
from tests.fuzz.case import Case, Command, Files, Link, Mode, Pipe, Sparse, command, environment, write
from tests.fuzz.checks import complaint
from tests.fuzz.runner import SURFACES
from tests.tiers import count

REPOSITORY = Path(__file__).resolve().parents[2]
CASES = 25  # cases of each surface
PATIENCE_SECONDS = 600  # seconds for the whole run on a busy machine


@pytest.fixture(scope="module")
def bounded_run() -> dict[str, Any]:
    """Return the result of a run of all surfaces and of the corpus."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ran.stdout, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_SECONDS)
@pytest.mark.parametrize("surface", [*SURFACES, "corpus"])
def test_hostile_files(surface: str, bounded_run: dict[str, Any]) -> None:
    found = [each for each in bounded_run["findings"] if each["surface"] == surface]
    shown = "\n".join(f"{each['title']}, {each['command']}: {each['complaint']}\n  {each['replay']}" for each in found)
    assert not found, shown
    expected = len(corpus.CASES) if surface == "corpus" else CASES
    assert bounded_run["tallies"][surface]["cases"] == expected


# Programs with one fault each, which the test below maps to complaints.
def _crash(arguments: Sequence[str]) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def _raise(arguments: Sequence[str]) -> int:
    raise RuntimeError("as it happens")


def _bug(arguments: Sequence[str]) -> int:
    sys.stderr.write("qwchat: error: internal error: KeyError: 'x'\n")
    return 1


def _wrong_code(arguments: Sequence[str]) -> int:
    sys.stderr.write("qwchat: error: it is so\n")
    return 3


def _silent(arguments: Sequence[str]) -> int:
    return 2


def _chatty(arguments: Sequence[str]) -> int:
    sys.stderr.write("no\n" * 50)
    return 0


def _long_line(arguments: Sequence[str]) -> int:
    sys.stderr.write("x" * 5_000)
    return 0


def _escape(arguments: Sequence[str]) -> int:
    sys.stderr.write("a \x1b[31m name\n")
    return 0


def _bad_json(arguments: Sequence[str]) -> int:
    sys.stdout.write("{")
    return 0


def _burn(arguments: Sequence[str]) -> int:
    while True:
        pass


def _wait(arguments: Sequence[str]) -> int:
    signal.pause()
    return 0


def _grow(arguments: Sequence[str]) -> int:
    kept = []
    try:
        while True:
            kept.append(bytearray(b"x" * (1 << 26)))
    except MemoryError:
        sys.stderr.write("qwchat: error: out of memory\n")
        return 5


def _write_outside(arguments: Sequence[str]) -> int:
    Path("../../outside").write_text("x")
    return 0


def _read_canary(arguments: Sequence[str]) -> int:
    Path("link/canary").read_text()
    return 0


def _start(arguments: Sequence[str]) -> int:
    subprocess.run(["true"], check=True)
    return 0


def _unpickle(arguments: Sequence[str]) -> int:
    import pickle

    pickle.loads(b"cos\ngetpid\n(tR.")
    return 0


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        (_crash, "ended by signal 11"),
        (_raise, "RuntimeError: as it happens"),
        (_bug, "'internal error:' on standard error"),
        (_wrong_code, "exit code 3: qwchat: error: it is so"),
        (_silent, "no reason on standard error"),
        (_chatty, "50 lines on standard error"),
        (_long_line, "a line of 5,000 characters"),
        (_escape, "the control character '\\x1b' in standard error"),
        (_bad_json, "standard output is not JSON"),
        (_burn, "takes more than 1 s of the processor"),
        (_wait, "waits for something after 1 s"),
        (_write_outside, "writes outside of its folders"),
        (_read_canary, "reads what it must not"),
        (_start, "runs code: subprocess.Popen"),
        (_unpickle, "runs code: pickle.find_class"),
    ],
)
@pytest.mark.slow
def test_what_is_wrong_is_seen(
    program: Callable[[Sequence[str]], int], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS", 1.0)
    case = Case("x", 0, "x", {"work/link": Link("../secret")}, ())
    asked = command("x", codes=(0, 2), json=program is _bad_json)
    write(case, tmp_path)
    assert wrong in complaint(asked, server.ask(program, case, asked, tmp_path), tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as only Linux does")
def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MEMORY_BYTES", 1 << 28)
    case, asked = Case("x", 0, "x", {}, ()), command("x", codes=(0,))
    write(case, tmp_path)
    outcome = server.ask(_grow, case, asked, tmp_path)
    assert outcome.memory < (1 << 28) + 2 * server.MEMORY_BYTES + (1 << 30)
    assert complaint(asked, outcome, tmp_path) == "exit code 5: qwchat: error: out of memory"


def _greet(arguments: Sequence[str]) -> int:
    sys.stdout.write(f"{arguments[0]} {sys.stdin.read()} {os.environ['HOME']} {Path.cwd()}")
    Path("here").write_text("x")
    return 0


def test_a_correct_program_has_no_complaint(tmp_path: Path) -> None:
    case, asked = Case("x", 0, "x", {}, ()), command("{case}/y", codes=(0,), stdin=b"hello")
    write(case, tmp_path)
    outcome = server.ask(_greet, case, asked, tmp_path)
    assert complaint(asked, outcome, tmp_path) == ""
    assert outcome.out.decode() == f"{tmp_path}/y hello {tmp_path}/home {tmp_path}/work"
    missed = replace(asked, text="hello")
    assert complaint(missed, server.ask(_greet, case, missed, tmp_path), tmp_path).startswith("another output")


def _closed(arguments: Sequence[str]) -> int:
    if sys.stdout is None:
        return 0
    try:
        os.write(1, b"x")
    except BrokenPipeError:
        return 141
    return 0


@pytest.mark.parametrize(("closed", "code"), [("", 0), ("reader", 141), ("descriptor", 0)])
def test_standard_output_is_closed(closed: str, code: int, tmp_path: Path) -> None:
    case, asked = Case("x", 0, "x", {}, ()), command("x", codes=(), closed=closed)
    write(case, tmp_path)
    assert server.ask(_closed, case, asked, tmp_path).code == code


def test_files_of_every_kind_are_written(tmp_path: Path) -> None:
    files: Files = {"a/b": b"x", "l": Link("a/b"), "p": Pipe(), "s": Sparse(b"x", 1 << 33), "m": Mode(b"x", 0o640)}
    write(Case("x", 0, "x", files, ()), tmp_path)
    assert (tmp_path / "l").read_bytes() == b"x"
    assert (tmp_path / "p").is_fifo()
    assert (tmp_path / "s").stat().st_size == 1 << 33
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Return a base without engine files, which suffices for making cases."""
    folder = tmp_path_factory.mktemp("base")
    make_checkpoints(folder)
    checkpoint, session = folder / "checkpoint", folder / "session"
    manifest = {"weights": {"bytes": 64}, "files": {}, "tensors": {"x": {"parts": {"values": {"offset": 0}}}}}
    manifest["tensors"]["y"] = {"parts": {"values": {"offset": 64}}}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / "weights.bin").write_bytes(bytes(64))
    session.mkdir()
    lines = [{"format": "qwchat session", "version": 1}, {"title": "x"}]
    (session / "session.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = bytes(64) + b"".join(number.to_bytes(4, "little") for number in (1, 1, 32, 8))
    (session / "kv.snapshot").write_bytes(head.ljust(4096, b"\1"))
    (session / "answer").write_text("x")
    return Base(checkpoint, folder / "sharded", folder / "gguf", checkpoint, session)


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.slow
def test_a_case_follows_from_its_number(surface: str, base: Base) -> None:
    def make(number: int) -> Case:
        return SURFACES[surface](random.Random(f"7:{surface}:{number}"), number, base)

    numbers = range(count(40, 4))
    first = [make(number) for number in numbers]
    random.seed(time.time())
    assert [repr(make(number)) for number in numbers] == [repr(case) for case in first]
    assert len({repr(case.files) for case in first}) > 3 * len(first) // 4


@pytest.mark.slow
def test_every_case_stays_in_its_folder(base: Base) -> None:
    cases = [make(random.Random(number), number, base) for make in SURFACES.values() for number in range(count(20, 4))]
    for case in [*cases, *(make(base) for make in corpus.CASES.values())]:
        assert case.commands
        assert all(".." not in Path(name).parts and not name.startswith("/") for name in case.files)
        values = environment(case, Path("/case"))
        assert all(values[name].startswith("/case") for name in values if name.startswith("XDG_") or name == "HOME")
        assert all(isinstance(each, Command) and each.codes <= {0, 1, 2, 3, 4, 6, 141} for each in case.commands)
