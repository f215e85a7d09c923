"""Check a model's files against their checksums once, in the background of its first use.

A model that was found intact is checked again only after one of its files has been written or replaced. A file in the
cache folder records the intact models, one line per state (`quant.verification.folder_state`). It must belong to the
user, be in a folder that others cannot write, and not be a link. A forged record can only skip a check.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from quant.container import ModelFolder
from quant.native.object_store import cache_root
from quant.safe_files import make_private_folder, read_private
from quant.verification import Verification, folder_state
from qwchat.cpu.kernels.thread_counts import default_threads
from qwchat.errors import DamagedModelError
from qwchat.text_files import replace_text

CHECKED_FILES = ("config.json", "tokenizer.json")
"""Files to check besides the weights. Users may edit the others: defaults and templates."""

_FOLDER_NAME = "verification"
_FILE_NAME = "intact"
_MAX_STATES = 256
_STATE_LENGTH = 64
_NICE_INCREMENT = 10  # a tenth of the CPU share of a generating thread on the same core
_POLL_SECONDS = 0.05
_JOIN_SECONDS = 1.0


class Integrity:
    """The background check of one model: `start` begins it, `close` ends it.

    Args:
        folder: the opened model; None checks nothing.
    """

    def __init__(self, folder: ModelFolder | None) -> None:
        self._folder = folder
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._extra_threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._closed = False
        self._verification: Verification | None = None
        self._state = "" if folder is None else folder_state(folder, CHECKED_FILES)
        if folder is None or self._state in intact_states():
            self._finished.set()
        else:
            self._verification = Verification(folder, CHECKED_FILES)

    @property
    def total_bytes(self) -> int:
        """Number of bytes to check; 0 if there is nothing to check."""
        return 0 if self._verification is None else self._verification.total_bytes

    @property
    def done_bytes(self) -> int:
        """Number of bytes checked so far."""
        return 0 if self._verification is None else self._verification.done_bytes

    @property
    def intact(self) -> bool:
        """True if the model is known to be intact or needs no check."""
        damaged = self._verification is not None and self._verification.damaged
        return self._finished.is_set() and self._failure is None and not damaged

    def start(self) -> None:
        """Start the check in a low-priority thread."""
        if not self._finished.is_set():
            self._begin(_work_at_low_priority)

    def raise_if_damaged(self) -> None:
        """Raise DamagedModelError if damage has been found so far. Takes less than a microsecond."""
        if self._failure is not None:
            raise self._failure
        if self._verification is not None and self._folder is not None and self._verification.damaged:
            raise DamagedModelError(self._folder.path, self._verification.report)

    def wait(self, seconds: float | None = None) -> bool:
        """Finish the check on all cores, within `seconds` if given. Return True if it is finished."""
        if self._verification is None:
            return True
        self._verification.stop_throttled()
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while not (self._finished.is_set() or self._closed) and (remaining := end - time.monotonic()) > 0:
            # Restart them if they finished before the low-priority thread released its part.
            if not any(thread.is_alive() for thread in self._extra_threads):
                self._extra_threads = [self._begin(Verification.work) for _ in range(default_threads())]
            self._finished.wait(min(remaining, _POLL_SECONDS))
        return self._finished.is_set() or self._closed

    def close(self) -> None:
        """Stop the check; an unfinished one starts again at the next use."""
        self._closed = True
        if self._verification is not None:
            self._verification.stop()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _begin(self, work: Callable[[Verification], None]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(work,), name="integrity", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _run(self, work: Callable[[Verification], None]) -> None:
        assert self._verification is not None
        try:
            work(self._verification)
        except BaseException as error:  # noqa: BLE001  # Raised in the thread that waits; here it would be lost.
            self._failure = error
            self._finished.set()
            return
        with self._lock:
            if self._verification.finished and self._folder is not None and not self._finished.is_set():
                record_result(self._folder, self._state, intact=not self._verification.damaged)
                self._finished.set()


def record_result(folder: ModelFolder, state: str, *, intact: bool) -> None:
    """Record the result of a check, unless the files have changed since they were in `state`."""
    if not intact:
        unmark_intact(state)
    elif folder_state(folder, CHECKED_FILES) == state:
        mark_intact(state)


def intact_states() -> list[str]:
    """Return the states that were found intact, latest first; empty if the file is not trustworthy."""
    data = read_private(record_path(), (_STATE_LENGTH + 1) * _MAX_STATES)
    lines = (data or b"").decode("ascii", "replace").split("\n")
    return [line for line in lines if len(line) == _STATE_LENGTH]


def mark_intact(state: str) -> None:
    """Record `state` as intact. If the file cannot be written, the next use checks the model again."""
    if (known := intact_states())[:1] != [state]:
        _write([state, *(other for other in known if other != state)])


def unmark_intact(state: str) -> None:
    """Remove `state` from the record."""
    if state in (known := intact_states()):
        _write([other for other in known if other != state])


def record_path() -> Path:
    """Return the path of the record."""
    return cache_root() / _FOLDER_NAME / _FILE_NAME


def _write(states: list[str]) -> None:
    path = record_path()
    try:
        if make_private_folder(path.parent):
            replace_text(path, "".join(f"{state}\n" for state in states[:_MAX_STATES]), 0o600)
    except OSError:
        return


def _work_at_low_priority(verification: Verification) -> None:
    verification.work((lambda seconds: None) if _lower_priority() else time.sleep)


def _lower_priority() -> bool:
    """Lower the priority of this thread, and return False if that is not possible."""
    if not sys.platform.startswith("linux"):
        return False
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICE_INCREMENT))
    except OSError:
        return False
    return True
