"""Memory: how much this process may still use, and buffers that use it page by page."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.units import binary_size
from quant.wording import ArgumentMessage
from qwchat.errors import NotEnoughMemoryError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def _meminfo_bytes(field: str) -> int | None:
    """Return the bytes that Linux reports as `field` in /proc/meminfo; None if it reports nothing."""
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(fields[field].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _cgroup_available() -> int | None:
    """Return the bytes that the control group (version 2) still grants; None without a limit.

    Its file pages can be dropped, so they count as available.
    """
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - int(statistics["anon"]))
    except (OSError, KeyError, ValueError):
        return None


def available_memory() -> int | None:
    """Return the bytes that can be used without swapping; None if the system does not say."""
    known = [amount for amount in (_meminfo_bytes("MemAvailable"), _cgroup_available()) if amount is not None]
    return min(known, default=None)


def total_memory() -> int | None:
    """Return the bytes of memory of this machine; None if the system does not say."""
    return _meminfo_bytes("MemTotal")


def require_memory(needed: int, purpose: str, remedy: str) -> None:
    """Check that `needed` bytes are available.

    Linux grants more memory than it has, and kills the process that writes to it, so this is checked in advance.

    Args:
        needed: bytes.
        purpose: what needs them, as the subject of the message.
        remedy: what the user can do, as a clause.

    Raises:
        NotEnoughMemoryError: fewer bytes are available.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise NotEnoughMemoryError(
            ArgumentMessage(
                f"{purpose} needs {binary_size(needed)} of memory, but only {binary_size(available)} are free: ", remedy
            )
        )


def allocate_on_demand(size: int) -> NDArray[np.uint8]:
    """Return `size` zero bytes, starting on a page, of which the system provides each page when it is first written.

    NumPy would ask for huge pages. A short conversation writes a little of its KV cache in many places, and the system
    would have to zero all of it before the first token. Raises MemoryError.
    """
    if size == 0:
        return np.zeros(0, np.uint8)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot allocate {size:,} bytes: {error.strerror}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # A system without huge pages refuses the advice.
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)
