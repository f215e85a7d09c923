"""Matrices whose codes lie in the file as (K, N): the common part of GPTQ and AWQ."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.matrix import FLOATS, PackedMatrix, expect_tensor
from quant.sources.packed.words import WORD_BITS, words_for
from quant.sources.source import short_name


class TransposedMatrix(PackedMatrix):
    """Matrix with the tensors `qweight`, `qzeros` (G, N / codes per word) and `scales` (G, N).

    A range of rows is a range of columns of each tensor, so reading it costs in proportion to its size. The pages of
    the file are released after the last rows, since all ranges share them.
    """

    module: str

    @abstractmethod
    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the codes of rows `start` to `stop`, exclusive, (rows, K)."""

    def stored_scales(self) -> NDArray[Any]:
        """Return a view of the scales in the file, (N, G); bf16 numbers are u2."""
        return self.checkpoint.raw(f"{self.module}.scales").T

    def release(self, start: int, stop: int) -> None:
        """Release the memory of the matrix after its last rows."""
        if stop == self.shape[0]:
            for name in self.stored_names:
                self.checkpoint.release(name, 0, self.checkpoint.stored[name].shape[0])


def check_group_tensors(
    checkpoint: HuggingFaceCheckpoint, module: str, shape: tuple[int, int], bits: int, group_size: int
) -> int:
    """Check the shapes of `qzeros` and `scales`. Return the number of groups of columns.

    Raises CheckpointError if they do not fit a matrix of `shape`, or if its rows do not fill words.
    """
    rows, columns = shape
    if rows * bits % WORD_BITS:
        raise CheckpointError(
            f"{checkpoint.path}: module {short_name(module)} has {rows} rows, which do not fill words of 32 bits; "
            "download the checkpoint again"
        )
    groups = -(-columns // group_size)
    expect_tensor(checkpoint, f"{module}.qzeros", ("I32",), (groups, words_for(rows, bits)))
    expect_tensor(checkpoint, f"{module}.scales", FLOATS, (groups, rows))
    return groups
