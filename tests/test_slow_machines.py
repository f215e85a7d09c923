"""No test depends on the speed of the machine, or on signals that its parent process ignores."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from tests.clocks import PATIENCE_SECONDS, calls, cost_growth, cost_ratio, cpu_share, wait_for

TESTS = Path(__file__).parent
FILES = sorted(path for path in TESTS.rglob("*.py") if path.name != "clocks.py")
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time", "times", "getrusage"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS}
CALL = re.compile(rf"\b(time|os|resource)\s*\.\s*({'|'.join(CLOCKS)})\s*\(")
# A benchmark's stopwatch is compared with a clock of the same run, which holds on any machine.
EXCEPTIONS = {"benchmarks/test_startup.py"}
# Intended sleeps: tests of elapsed time, endless work, and a slow network.
SLEEPS = {
    "chat/editor/test_stopping.py": 1,
    "quant/native/test_object_store.py": 1,
    "store/test_model_pull.py": 1,
}
CHILD = "import signal; print(*(n for n in signal.Signals if signal.getsignal(n) is signal.SIG_IGN))"


def calls_a_clock(node: ast.AST) -> bool:
    """Return True if a node is a call such as `time.monotonic()`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    owner = node.func.value
    return node.func.attr in CLOCKS and isinstance(owner, ast.Name) and owner.id in ("time", "os", "resource")


def within(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of an expression, without functions that it only passes on."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.Lambda):
            yield from within(child)


def reads_a_clock(tree: ast.AST, names: Set[str]) -> bool:
    """Return True if an expression calls a clock or uses one of the names of clock readings."""
    return any(calls_a_clock(node) or (isinstance(node, ast.Name) and node.id in names) for node in within(tree))


def names_of_readings(tree: ast.AST, known: Set[str] = frozenset()) -> set[str]:
    """Return `known` plus the variables that hold clock readings and the functions that return them."""
    names = set(known)
    while True:
        before = len(names)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value:
                if reads_a_clock(node.value, names):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            elif isinstance(node, ast.FunctionDef):
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
                if any(reads_a_clock(value, names) for value in returned):
                    names.add(node.name)
        if len(names) == before:
            return names


def is_comparison_of_costs(test: ast.expr, names: Set[str]) -> bool:
    """Return True if an assertion compares two costs: named readings on both sides, no call of a clock."""
    if not isinstance(test, ast.Compare) or any(map(calls_a_clock, ast.walk(test))):
        return False
    return all(reads_a_clock(side, names) for side in (test.left, *test.comparators))


def assertions_on_clocks(source: str) -> list[int]:
    """Return the lines of a test file that assert something about a clock reading, except comparisons of costs."""
    if not CALL.search(source):
        return []
    body = ast.parse(source).body
    scopes = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    top = ast.Module([node for node in body if node not in scopes], [])
    shared = names_of_readings(top)
    for _ in scopes:  # A function may return the reading of another one.
        shared |= {scope.name for scope in scopes if scope.name in names_of_readings(scope, shared)}
    found = []
    for scope in (top, *scopes):
        names = names_of_readings(scope, shared)
        asserted = [node for node in ast.walk(scope) if isinstance(node, ast.Assert)]
        doubtful = [node for node in asserted if reads_a_clock(node.test, names)]
        found += [node.lineno for node in doubtful if not is_comparison_of_costs(node.test, names)]
    return found


def impatient_guards(source: str) -> list[int]:
    """Return the lines that wait for a process or thread with another timeout than PATIENCE_SECONDS."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            waits = [word.value for word in node.keywords if word.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("wait", "join"):
                waits += node.args[:1]
            numbers = [each for each in waits if isinstance(each, ast.Constant) and isinstance(each.value, float | int)]
            found += [each.lineno for each in numbers if each.value]  # 0 checks without waiting.
    return found


def fixed_sleeps(source: str) -> list[int]:
    """Return the lines that sleep for a fixed time, except between two checks of a condition."""
    found: list[int] = []

    def look(node: ast.AST, *, waiting: bool) -> None:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep" and not waiting:
            found.extend([node.lineno] * all(isinstance(each, ast.Constant) for each in node.args))
        for child in ast.iter_child_nodes(node):
            look(child, waiting=waiting or isinstance(node, ast.While | ast.Lambda))

    look(ast.parse(source), waiting=False)
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(TESTS)) for path in FILES])
@pytest.mark.slow
def test_no_test_asserts_a_time_or_has_a_short_timeout(path: Path) -> None:
    source = path.read_text("utf-8")
    if str(path.relative_to(TESTS)) not in EXCEPTIONS:
        assert assertions_on_clocks(source) == []
    assert impatient_guards(source) == []
    assert len(fixed_sleeps(source)) == SLEEPS.get(str(path.relative_to(TESTS)), 0)


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_exceptions_are_needed(name: str) -> None:
    assert assertions_on_clocks((TESTS / name).read_text("utf-8")) != []


def test_assertions_on_clocks_are_found() -> None:
    direct = "import time\nstart = time.monotonic()\nassert time.monotonic() - start < 2\n"
    through_names = "import time\nbegan = time.perf_counter()\ntook = time.perf_counter() - began\nassert took < 1\n"
    through_a_function = "import os\ndef seconds():\n    now = os.times()\n    return now[0]\nassert seconds() < 1\n"
    harmless = "import time\nstart = time.monotonic()\nseconds = 3\nassert seconds == 3\n"
    found = [assertions_on_clocks(source) for source in (direct, through_names, through_a_function, harmless)]
    assert found == [[3], [4], [5], []]
    two_costs = "import time\ndef cost(n):\n    return time.process_time() - n\nassert cost(8) < 24 * cost(1)\n"
    assert assertions_on_clocks(two_costs) == []
    guards = "process.wait(10)\nrun(timeout=20)\nrun(timeout=PATIENCE_SECONDS)\n', '.join(['a'])\n"
    assert impatient_guards(guards) == [1, 2]
    sleeps = "time.sleep(0.5)\nwhile not done():\n    time.sleep(0.1)\nrun(lambda: time.sleep(1))\ntime.sleep(x)\n"
    assert fixed_sleeps(sleeps) == [1]


def test_comparisons_of_costs_are_allowed() -> None:
    def square(size: int) -> None:
        for _ in range(size):
            sum(range(size))

    assert cost_growth(square, 300, 8) > 24
    assert cost_growth(lambda size: sum(range(100 * size)), 300, 8) < 24
    assert cost_ratio(lambda: sum(range(1_000_000)), lambda: sum(range(10_000))) > 10
    assert cpu_share(lambda: sum(range(3_000_000))) > 0.2
    assert calls(lambda: [len("a") for _ in range(50)]) >= 50


def test_waiting_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.clocks.PATIENCE_SECONDS", 0.01)
    with pytest.raises(AssertionError, match="Godot did not happen in time"):
        wait_for(lambda: False, "Godot")


@pytest.mark.parametrize("names", [("SIGHUP",), ("SIGINT", "SIGTERM"), ("SIGTSTP", "SIGQUIT")])
def test_children_do_not_inherit_ignored_signals(names: tuple[str, ...]) -> None:
    program = (
        "import signal, subprocess, sys\n"
        f"for name in {names!r}:\n    signal.signal(signal.Signals[name], signal.SIG_IGN)\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [signal.Signals[name] for name in {names!r}])\n"
        "from tests.inherited_signals import restore_signals\nrestore_signals()\n"
        f"subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)\n"
        "print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    ignored, blocked = ran.stdout.splitlines()
    # Python ignores these two itself.
    assert set(ignored.split()) <= {str(int(signal.SIGPIPE)), str(int(getattr(signal, "SIGXFSZ", 0)))}
    assert blocked == "[]"
