"""Memory that the system provides page by page."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from qwchat.cpu.memory import allocate_on_demand

_STATM = Path("/proc/self/statm")


def resident() -> int:
    return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not _STATM.exists(), reason="the system does not say what is resident")
def test_pages_that_were_not_written_use_no_memory() -> None:
    before = resident()
    memory = allocate_on_demand(256 << 20)
    memory[:: 1 << 20] = 1
    assert resident() - before < 16 << 20
    assert memory.sum(dtype=np.int64) == 256


@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_memory_is_zero_and_can_be_written(size: int) -> None:
    memory = allocate_on_demand(size)
    assert memory.shape == (size,)
    assert not memory.any()
    assert size == 0 or memory.ctypes.data % 64 == 0
    memory.fill(255)
    assert memory.sum(dtype=np.int64) == 255 * size


def test_a_failed_allocation_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="cannot allocate"):
        allocate_on_demand(1 << 60)
