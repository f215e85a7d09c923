"""AWQ checkpoints of version "gemm", with codes of 4 bits.

For a matrix (N, K) with G groups of columns, a module has

    qweight  i32  (K, N/8)  word (k, c) holds the codes of column k of rows 8 c ... 8 c + 7
    qzeros   i32  (G, N/8)  word (g, c) holds the zero points of the same rows
    scales   f16  (G, N)

Nibble i of a word belongs to row 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]. Layout: AutoAWQ, `packing_utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.json_fields import JsonFields, short_repr
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.matrix import expect_tensor
from quant.sources.packed.scheme import PackedScheme, read_bits, read_group_size
from quant.sources.packed.transposed import TransposedMatrix, check_group_tensors
from quant.sources.packed.words import unpack

BITS = 4
_PER_WORD = 8
_NIBBLE_OF_ROW = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class AwqScheme(PackedScheme):
    """Settings of an AWQ checkpoint: columns per group, or 0 for one group per row."""

    group_size: int

    suffix = ".qweight"

    @classmethod
    def parse(cls, fields: JsonFields) -> AwqScheme:
        """Read quantization_config. Raises the error of `fields` for unsupported values."""
        version = fields.text("version", "gemm")
        if not isinstance(version, str) or version.lower() != "gemm":
            raise fields.invalid(f"AWQ version {short_repr(version)} is not supported; only 'gemm' is")
        backend = fields.text("backend", None)
        if backend == "llm-awq":
            raise fields.invalid("AWQ files of 'llm-awq' are not supported; only those of AutoAWQ are")
        if not fields.boolean("zero_point", True):
            raise fields.invalid("AWQ without zero points (zero_point) is not supported")
        read_bits(fields, "bits", (BITS,))
        return cls(read_group_size(fields))

    def open_matrix(self, checkpoint: HuggingFaceCheckpoint, module: str) -> AwqMatrix:
        """Check the tensors of a module. Raises CheckpointError if they contradict each other or the settings."""
        return AwqMatrix(checkpoint, module, self)


class AwqMatrix(TransposedMatrix):
    """Matrix of a module of an AWQ checkpoint."""

    def __init__(self, checkpoint: HuggingFaceCheckpoint, module: str, scheme: AwqScheme) -> None:
        names = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]
        columns, words = expect_tensor(checkpoint, names[0], ("I32",), (None, None))
        shape = (words * _PER_WORD, columns)
        group_size = scheme.group_size or columns
        check_group_tensors(checkpoint, module, shape, BITS, group_size)
        super().__init__(checkpoint, names, shape=shape, bits=BITS, group_size=group_size, symmetric=False)
        self.module = module

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the codes of rows `start` to `stop`, exclusive, (rows, K)."""
        return self._unpack("qweight", start, stop)

    def zeros(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the zero points of rows, (rows, G)."""
        return self._unpack("qzeros", start, stop)

    def _unpack(self, part: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the numbers of rows in one of the tensors, (rows, X)."""
        first, last = start // _PER_WORD, -(-stop // _PER_WORD)
        codes = unpack(self.checkpoint.raw(f"{self.module}.{part}")[:, first:last], BITS)
        by_row = codes.reshape(len(codes), last - first, _PER_WORD)[:, :, _NIBBLE_OF_ROW].reshape(codes.shape).T
        return np.ascontiguousarray(by_row[start - first * _PER_WORD : stop - first * _PER_WORD])
