"""Programmatic dependent launch: kernels that start while the one before them still runs (sm_90).

A kernel waits before it reads what earlier kernels wrote, and before it writes. Every thread of every kernel waits, so
that a kernel which has ended implies that all before it have ended.
"""

from __future__ import annotations

from typing import Any

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import device


def wait(target: int) -> Any:
    """Return a device function: wait for the kernel before, then let the next one start. Empty below sm_90."""
    if target < 90:
        return device(_nothing)

    @device
    def wait():
        p.wait_for_previous()
        p.let_next_start()

    return wait


def _nothing():
    pass
