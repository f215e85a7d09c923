"""The check of a model's files against their checksums, once, in the background of the first use.

A model that was found intact is not checked again until one of its files is written or replaced. Which ones were found
intact stands in one file of the cache folder, a line for each state of a model (`quant.verification.folder_state`). The
file must be the user's own, in a folder where others cannot write, and not a link. It is only ever compared with, so a
forged one can do no more than spare a check.
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
"""Checked in the background beside the weights. The others are text that people adapt: defaults and templates."""

_FOLDER_NAME = "verification"
_FILE_NAME = "intact"
_MAX_STATES = 256
_STATE_LENGTH = 64
_NICE_INCREMENT = 10  # a tenth of the share of a thread that generates, where both want the same core
_POLL_SECONDS = 0.05
_JOIN_SECONDS = 1.0


class Integrity:
    """The check of one model in the background: begun by `start`, ended by `close`.

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
        """Bytes to be checked; 0 where nothing is."""
        return 0 if self._verification is None else self._verification.total_bytes

    @property
    def done_bytes(self) -> int:
        """Bytes that have been checked."""
        return 0 if self._verification is None else self._verification.done_bytes

    @property
    def intact(self) -> bool:
        """Whether the model is known to be intact, or is not to be checked."""
        damaged = self._verification is not None and self._verification.damaged
        return self._finished.is_set() and self._failure is None and not damaged

    def start(self) -> None:
        """Check in a thread that leaves the processor to others."""
        if not self._finished.is_set():
            self._begin(_work_at_low_priority)

    def raise_if_damaged(self) -> None:
        """Raise DamagedModelError where damage has been found so far. Takes less than a microsecond."""
        if self._failure is not None:
            raise self._failure
        if self._verification is not None and self._folder is not None and self._verification.damaged:
            raise DamagedModelError(self._folder.path, self._verification.report)

    def wait(self, seconds: float | None = None) -> bool:
        """Finish the check with all cores. Return whether it is over, after `seconds` at most."""
        if self._verification is None:
            return True
        self._verification.stop_throttled()
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while not (self._finished.is_set() or self._closed) and (remaining := end - time.monotonic()) > 0:
            # Again where they ended before the gentle thread laid down its part.
            if not any(thread.is_alive() for thread in self._extra_threads):
                self._extra_threads = [self._begin(Verification.work) for _ in range(default_threads())]
            self._finished.wait(min(remaining, _POLL_SECONDS))
        return self._finished.is_set() or self._closed

    def close(self) -> None:
        """End the check; what is unfinished is done again by the next use."""
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
        except BaseException as error:  # noqa: BLE001  # Raised in the thread that asks; here nothing would see it.
            self._failure = error
            self._finished.set()
            return
        with self._lock:
            if self._verification.finished and self._folder is not None and not self._finished.is_set():
                record_result(self._folder, self._state, intact=not self._verification.damaged)
                self._finished.set()


def record_result(folder: ModelFolder, state: str, *, intact: bool) -> None:
    """Keep what the check of a model found, unless its files have changed since they were in `state`."""
    if not intact:
        unmark_intact(state)
    elif folder_state(folder, CHECKED_FILES) == state:
        mark_intact(state)


def intact_states() -> list[str]:
    """The states that were found intact, the latest first; none where the file is not to be trusted."""
    data = read_private(record_path(), (_STATE_LENGTH + 1) * _MAX_STATES)
    lines = (data or b"").decode("ascii", "replace").split("\n")
    return [line for line in lines if len(line) == _STATE_LENGTH]


def mark_intact(state: str) -> None:
    """Keep `state` as intact; where that cannot be written, the model is checked again by its next use."""
    if (known := intact_states())[:1] != [state]:
        _write([state, *(other for other in known if other != state)])


def unmark_intact(state: str) -> None:
    """Take back that `state` is intact."""
    if state in (known := intact_states()):
        _write([other for other in known if other != state])


def record_path() -> Path:
    """Where the states of intact models are kept."""
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
    """Lower the priority of this thread alone; where that cannot be done, the caller is to pause instead."""
    if not sys.platform.startswith("linux"):
        return False
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICE_INCREMENT))
    except OSError:
        return False
    return True
