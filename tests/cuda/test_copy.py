"""The copy kernel, interpreted."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.cuda.manifest import TARGETS, kernels, ptx_text
from tests.cuda.interpreter import Kernel, Memory


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("words", "blocks"), [(1, 1), (100, 1), (300, 2), (513, 1)])
def test_words_are_copied(target: int, words: int, blocks: int) -> None:
    record = kernels()["copy_words"]
    kernel = Kernel(ptx_text(record.unit, target), record.name)
    source = np.random.default_rng(1).integers(0, 2**32, (words, 4), dtype=np.uint32)
    memory = Memory()
    written = memory.place(np.zeros_like(source))
    kernel.run(memory, blocks, record.threads, written, memory.place(source), words)
    np.testing.assert_array_equal(memory.back(written, np.uint32, (words, 4)), source)
