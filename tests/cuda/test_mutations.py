"""The changes that tests of kernels must notice, tried on a kernel written by hand and on the copy."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qwchat.cuda.manifest import kernels, ptx_text
from tests.cuda.handwritten import BLOCK_SUM, SHARED, kernel_text
from tests.cuda.interpreter import Kernel, Memory
from tests.cuda.mutations import mutations, survivors

pytestmark = pytest.mark.interpreter_only
NUMBERS = np.random.default_rng(5).integers(-99, 100, 64).astype(np.float32)
SUM = kernel_text(BLOCK_SUM, 2, SHARED)


def sum_is_right(kernel: Kernel) -> None:
    memory = Memory()
    total = memory.place_empty(1, np.float32)
    kernel.run(memory, 1, 64, memory.place(NUMBERS), total)
    assert memory.back(total, np.float32)[0] == NUMBERS[:32].sum() - NUMBERS[32:].sum()


def runs(kernel: Kernel) -> None:
    memory = Memory()
    kernel.run(memory, 1, 64, memory.place(NUMBERS), memory.place_empty(1, np.float32))


def copies(kernel: Kernel) -> None:
    for words, blocks in ((100, 1), (600, 2)):
        source = np.random.default_rng(words).integers(0, 2**32, (words, 4), dtype=np.uint32)
        memory = Memory()
        written = memory.place_empty((words, 4), np.uint32)
        kernel.run(memory, blocks, 256, written, memory.place(source), words)
        np.testing.assert_array_equal(memory.back(written, np.uint32, (words, 4)), source)


def test_a_good_test_notices_every_change() -> None:
    assert {change.kind for change in mutations(SUM, "hand")} == {"barrier", "offset", "constant", "swap", "comparison"}
    found = survivors(SUM, "hand", sum_is_right)
    # All lanes have the sum, so that another lane may store it, and other threads may write the difference.
    assert {re.sub(r"setp[.a-z0-9]* |,.*", "", change.after) for change in found} <= {"%p1", "%p2", "and.b32 %r1"}
    assert {change.kind for change in found} <= {"constant", "comparison"}


def test_a_test_that_asserts_nothing_notices_races_and_bounds_only() -> None:
    found = survivors(SUM, "hand", runs)
    assert "swap" in {change.kind for change in found}
    assert "barrier" not in {change.kind for change in found}


def test_the_tests_of_the_copy() -> None:
    record = kernels()["copy_words"]
    found = survivors(ptx_text(record.unit, 80), record.name, copies)
    assert [str(change) for change in found] == []


def test_a_test_must_pass_for_the_kernel_as_it_is() -> None:
    with pytest.raises(AssertionError):
        survivors(SUM.replace("sub.rn.f32", "add.rn.f32"), "hand", sum_is_right)
