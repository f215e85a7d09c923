"""A process that is killed at one of its system calls."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

SYSTEM_CALLS = ("pwrite", "write", "fsync", "mkdir", "rename", "unlink", "ftruncate", "posix_fallocate", "open")
FORK = multiprocessing.get_context("fork")


def die_at_call(number: int, work: Callable[[], object]) -> None:
    """Do `work`, and kill this process before, during or after its n-th modifying system call."""
    calls = 0

    def deadly(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < number:
                return original(*args, **kwargs)
            moment = number % 3
            if moment == 1 and name in ("pwrite", "write"):
                original(args[0], args[1][: len(args[1]) // 2], *args[2:])
            elif moment == 2:
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("unreachable")

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, deadly(getattr(os, name), name))
    work()
    os._exit(0)
