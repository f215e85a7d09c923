"""GPTQ checkpoints, versions 1 and 2, with codes of 4 or 8 bits.

For a matrix (N, K) with G groups of columns and P = 32 / bits codes per word, a module has

    qweight  i32  (K/P, N)  word (r, n) holds the codes of columns P r ... P r + P - 1 of row n
    qzeros   i32  (G, N/P)  word (g, c) holds the zero points of rows P c ... P c + P - 1; version 1 stores them minus 1
    scales   f16  (G, N)
    g_idx    i32  (K,)      group of each column; optional

Layout: AutoGPTQ, `qlinear_cuda_old.py`. The `checkpoint_format` in config.json is not reliable: files of version 2 call
themselves "gptq". The zero points of a symmetric file are the middle of the range, so they reveal its version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError
from quant.json_fields import JsonFields, short_repr
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.matrix import HOMES, expect_tensor, read_column_groups
from quant.sources.packed.scheme import PackedScheme, check_absent, read_bits, read_group_size
from quant.sources.packed.transposed import TransposedMatrix, check_group_tensors
from quant.sources.packed.words import WORD_BITS, all_equal, contains, unpack, unpack_columns
from quant.sources.source import short_name

_VERSION_2 = "gptq_v2"
_CHECKPOINT_FORMATS = ("gptq", _VERSION_2)


@dataclass(frozen=True)
class GptqScheme(PackedScheme):
    """Settings of a GPTQ checkpoint.

    Attributes:
        bits: bits per code.
        group_size: columns per group. 0: one group per row.
        symmetric: whether every zero point is the middle of the code range.
        minus_one: whether config.json says that zero points are stored minus 1 (version 1).
        activation_order: whether the columns may be grouped in any order, which needs `g_idx`.
    """

    bits: int
    group_size: int
    symmetric: bool
    minus_one: bool
    activation_order: bool

    suffix = ".qweight"

    @classmethod
    def parse(cls, fields: JsonFields) -> GptqScheme:
        """Read quantization_config. Raises the error of `fields` for unsupported values."""
        formats = [fields.text(key, None) for key in ("checkpoint_format", "format")]
        for name in formats:
            if name not in (None, *_CHECKPOINT_FORMATS):
                raise fields.invalid(f"GPTQ format {short_repr(name)} is not supported; only 'gptq' and 'gptq_v2' are")
        if fields.boolean("is_marlin_format", False):
            raise fields.invalid("GPTQ format 'marlin' is not supported; only 'gptq' and 'gptq_v2' are")
        if fields.text("pack_dtype", "int32") != "int32":
            raise fields.invalid(f"pack_dtype {short_repr(fields.values['pack_dtype'])} is not supported")
        overrides = fields.values.get("dynamic")
        if overrides and not (isinstance(overrides, dict) and all(key.startswith("-:") for key in overrides)):
            raise fields.invalid("settings per module (dynamic) are not supported")
        check_absent(fields, {"adapter": "adapters", "rotation": "rotations"})
        return cls(
            bits=read_bits(fields, "bits"),
            group_size=read_group_size(fields),
            symmetric=fields.boolean("sym", True),
            minus_one=_VERSION_2 not in formats,
            activation_order=fields.boolean("desc_act", False),
        )

    def open_matrix(self, checkpoint: HuggingFaceCheckpoint, module: str) -> GptqMatrix:
        """Check the tensors of a module. Raises CheckpointError if they contradict each other or the settings."""
        return GptqMatrix(checkpoint, module, self)


class GptqMatrix(TransposedMatrix):
    """Matrix of a module of a GPTQ checkpoint."""

    def __init__(self, checkpoint: HuggingFaceCheckpoint, module: str, scheme: GptqScheme) -> None:
        bits, names = scheme.bits, [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]
        words, rows = expect_tensor(checkpoint, names[0], ("I32",), (None, None))
        columns = words * WORD_BITS // bits
        group_size = scheme.group_size or columns
        groups = check_group_tensors(checkpoint, module, (rows, columns), bits, group_size)
        column_groups, order = None, f"{module}.g_idx"
        if order in checkpoint.stored:
            names.append(order)
            column_groups = read_column_groups(checkpoint, order, columns, group_size, groups)
        elif scheme.activation_order:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {short_name(order)} is missing, which activation order (desc_act) needs; "
                "download the checkpoint again"
            )
        super().__init__(
            checkpoint,
            names,
            shape=(rows, columns),
            bits=bits,
            group_size=group_size,
            symmetric=scheme.symmetric,
            column_groups=column_groups,
        )
        self.module = module
        self._minus_one = scheme.minus_one
        _check_zeros(checkpoint, names[1], scheme)

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the codes of rows `start` to `stop`, exclusive, (rows, K)."""
        return unpack(self.checkpoint.raw(f"{self.module}.qweight")[:, start:stop].T, self.bits)

    def zeros(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the zero points of rows, (rows, G)."""
        stored = unpack_columns(self.checkpoint.raw(f"{self.module}.qzeros"), self.bits, start, stop)
        return stored.T + np.uint8(self._minus_one)


def _check_zeros(checkpoint: HuggingFaceCheckpoint, name: str, scheme: GptqScheme) -> None:
    """Raise CheckpointError if the zero points contradict the settings or are ambiguous."""
    words, bits = checkpoint.raw(name), scheme.bits
    middle, largest = HOMES[bits].zero, HOMES[bits].largest_code
    if scheme.symmetric:
        if not any(all_equal(words, bits, code) for code in (middle - 1, middle)):
            raise CheckpointError(
                f"{checkpoint.path}: tensor {short_name(name)} has zero points other than {middle}, "
                "but quantization_config says that they are symmetric (sym); download the checkpoint again"
            )
    elif scheme.minus_one and contains(words, bits, largest):
        raise CheckpointError(
            f"{checkpoint.path}: tensor {short_name(name)} stores the zero point {largest}, which stands for 0 or "
            f"{largest + 1} in GPTQ version 1; if the file has version 2, set checkpoint_format to '{_VERSION_2}'"
        )
