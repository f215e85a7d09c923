"""Fork a process that has everything imported and compiled for each command line.

A command takes some hundredths of a second that way. The process must have one thread when it forks. The child runs
under limits. The parent watches its time, its memory and its end.
"""

from __future__ import annotations

import atexit
import errno
import faulthandler
import gc
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from tests.forks import finish
from tests.fuzz.case import Case, Command, environment, in_case_folder

SECONDS = 10.0
MEMORY_BYTES = 2 << 30
LARGEST_FILE = 1 << 30
_STREAMS = (".out", ".errors", ".audit")
_REPOSITORY = Path(__file__).resolve().parents[2]
LONGEST_WAIT = 6  # multiple of SECONDS that may elapse on a busy machine
_REPORT = 16 << 20  # bytes of an output that are read
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
_CODE = ("pickle.find_class", "subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "socket.connect")

Run = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Attributes:
        code: exit code, or -N if signal N ended it.
        out: beginning of standard output.
        errors: beginning of standard error.
        seconds: elapsed seconds.
        processor: CPU seconds.
        memory: peak of the memory in bytes.
        trouble: complaint of the watchdogs, or "".
    """

    code: int
    out: bytes
    errors: bytes
    seconds: float
    processor: float
    memory: int
    trouble: str


def ask(run: Run, case: Case, command: Command, root: Path) -> Outcome:
    """Run a command of a case in a forked process that may write under `root` only."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        _run_child(run, case, command, root)
    status, usage, trouble = _watch(child)
    seconds = time.monotonic() - started
    out, errors, audit = (_content(root / name) for name in _STREAMS)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        out,
        errors,
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        trouble or audit.decode(errors="replace").partition("\n")[0],
    )


def _content(path: Path) -> bytes:
    """Return the contents of a stream's file and delete the file."""
    try:
        with path.open("rb") as file:
            return file.read(_REPORT)
    except FileNotFoundError:
        return b""
    finally:
        path.unlink(missing_ok=True)


def _watch(child: int) -> tuple[int, resource.struct_rusage, str]:
    """Wait for the child to end, or end it if it takes too long. Return its status, its usage and the complaint.

    CPU time counts, since other programs may keep the child from running. A child that is idle gets no such allowance.
    """
    started, idle, trouble = time.monotonic(), 0, ""
    descriptor = os.pidfd_open(child) if hasattr(os, "pidfd_open") else -1
    poll = select.poll()
    if descriptor >= 0:
        poll.register(descriptor, select.POLLIN)
    while True:
        # Without a process descriptor, this is a short sleep.
        poll.poll(500 if descriptor >= 0 else 5)
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        elapsed = time.monotonic() - started
        idle = idle + 1 if _is_idle(child) else 0
        if elapsed > SECONDS and idle > 2:
            trouble = f"waits for something after {SECONDS:.0f} s"
        elif elapsed > LONGEST_WAIT * SECONDS:
            trouble = f"still runs after {elapsed:.0f} s"
        if trouble:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
    if descriptor >= 0:
        os.close(descriptor)
    if not trouble and os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGKILL):
        trouble = f"takes more than {SECONDS:.0f} s of the processor"
    return status, usage, trouble


def _is_idle(child: int) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_bytes().rpartition(b") ")[2][:1] in b"SD"
    except OSError:
        return True


def _run_child(run: Run, case: Case, command: Command, root: Path) -> NoReturn:
    """Run the command in the child and exit."""
    code = 99
    try:
        os.setsid()
        gc.disable()
        faulthandler.disable()  # the parent has no traceback of the child either
        atexit._clear()  # exit handlers of the parent must not run
        _redirect(command, root)
        os.environ.clear()
        os.environ.update(environment(case, root))
        os.chdir(root / "work")
        words = [in_case_folder(word, root) for word in command.arguments]
        forbidden = [str(root / name) for name in case.forbidden]
        if case.fresh:
            _exec_interpreter(words, root, forbidden)
        _clear_cache_folders()
        audit(root, forbidden)
        _limit()
        if command.closed == "descriptor":  # Last, since the next open file gets this descriptor.
            os.close(1)
            sys.stdout = None
        code = run(words)
        finish()
    except BaseException:  # noqa: BLE001  # An exception here is a fault of the program, which the checks report.
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code & 0xFF)


def _redirect(command: Command, root: Path) -> None:
    """Redirect standard input, output and error to files, or standard output to a pipe without a reader."""
    reading = os.open(os.devnull, os.O_RDONLY)
    if command.stdin:
        reading = (
            os.memfd_create("stdin") if hasattr(os, "memfd_create") else os.open(root / ".in", os.O_RDWR | os.O_CREAT)
        )
        os.write(reading, command.stdin)
        os.lseek(reading, 0, os.SEEK_SET)
    os.dup2(reading, 0)
    for number, name in ((1, _STREAMS[0]), (2, _STREAMS[1])):
        descriptor = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if command.closed == "reader":
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)
        os.close(writer)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace", buffering=1)


def _exec_interpreter(words: Sequence[str], root: Path, forbidden: Sequence[str]) -> NoReturn:
    """Replace this process by a new interpreter that runs the command line under the same limits."""
    program = (
        f"import sys; sys.path[:0] = {[str(_REPOSITORY)]!r}; from pathlib import Path; "
        f"from tests.fuzz.server import audit; audit(Path({str(root)!r}), {list(forbidden)!r}); "
        f"from qwchat.cli.main import main; main({list(words)!r})"
    )
    _limit()
    os.execve(sys.executable, [sys.executable, "-P", "-B", "-c", program], dict(os.environ))


def _clear_cache_folders() -> None:
    """Make the program forget the cache folder of this process."""
    for module in program_modules():
        for name, value in list(vars(module).items()):
            if name in ("cache_folder", "writable_folder") and hasattr(value, "cache_clear"):
                value.cache_clear()
            elif hasattr(type(value), "writable_folder"):
                vars(value).pop("writable_folder", None)
                vars(value).pop("folder", None)


def program_modules() -> list[ModuleType]:
    """Return the imported modules of the program."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(("qwchat.", "quant."))]


def _limit() -> None:
    own = Path("/proc/self/statm")
    base = int(own.read_text().split()[0]) * resource.getpagesize() if own.exists() else 0
    if base:
        resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS) + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _absolute(path: str | bytes | os.PathLike[str]) -> Path:
    """Return the absolute form of `path` without following links."""
    return Path(os.path.normpath(Path.cwd() / os.fsdecode(path)))


def _targets(event: str, values: tuple[Any, ...]) -> list[str | bytes]:
    """Return the paths that an event changes, except those relative to an open folder."""
    if event in ("os.rename", "os.link"):
        paths, places = values[:2], values[2:4]
    elif event == "os.symlink":
        paths, places = values[1:2], values[2:3]
    else:
        paths, places = values[:1], values[1:2] if event in ("os.remove", "os.rmdir") else values[2:3]
    return [
        path
        for path, place in zip(paths, (*places, -1, -1), strict=False)
        if isinstance(path, str | bytes) and (place == -1 or os.fsencode(path).startswith(b"/"))
    ]


def _is_own_worker(values: tuple[Any, ...]) -> bool:
    """Return True if subprocess.Popen starts this interpreter with a module of the program, in isolated mode."""
    executable, arguments, folder = (*values, None, None, None)[:3]
    known = isinstance(arguments, list) and [*arguments[:2], "-c"] == [sys.executable, "-I", "-c"] and folder == "/"
    return executable == sys.executable and known and any("from qwchat." in str(word) for word in arguments)


def audit(root: Path, forbidden: Sequence[str]) -> None:
    """Report and prevent writing outside of `root`, running code, and opening `forbidden` files.

    The fuzzer may run as root, so reporting is not enough: a rename once replaced /dev/null.
    """
    report = os.open(root / _STREAMS[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    allowed, forbidden_paths = f"{root}/", tuple(forbidden)
    checking = False

    def tell(text: str) -> None:
        os.write(report, f"{text[:300]}\n".encode(errors="replace"))
        raise PermissionError(errno.EPERM, f"the fuzzer forbids it: {text[:100]}")

    def inside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open descriptor
        given = _absolute(path)
        real = f"{os.path.realpath(given.parent)}/{given.name}"
        return real.startswith(allowed) or str(given) in ("/dev/null", "/dev/tty")

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal checking
        if checking:
            return
        checking = True
        try:
            if event in _CODE:
                if not _is_own_worker(values):
                    tell(f"runs code: {event} {values!r}")
            elif event in _CHANGES:
                if any(not inside(path) for path in _targets(event, values)):
                    tell(f"changes what is outside of its folders: {event} {values!r}")
            elif event == "open" and isinstance(values[0], str | bytes):
                name = str(_absolute(values[0]))
                if isinstance(values[2], int) and values[2] & _WRITING and not inside(name):
                    tell(f"writes outside of its folders: {name}")
                if name.startswith(allowed) and os.path.realpath(name).startswith(forbidden_paths):
                    tell(f"reads what it must not: {name}")
        finally:
            checking = False

    sys.addaudithook(hook)
