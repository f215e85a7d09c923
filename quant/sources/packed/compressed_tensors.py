"""Checkpoints of compressed-tensors in the format "pack-quantized": W4A16 and W8A16.

For a matrix (N, K) with G groups of columns and P = 32 / bits codes per word, a module has

    weight_packed      i32  (N, ceil(K/P))  word (n, c) holds the codes of columns P c ... P c + P - 1 of row n
    weight_scale       (N, G), in the type of the model
    weight_shape       i32 or i64  (2,)     N and K
    weight_zero_point  i32  (ceil(N/P), G)  word (c, g) holds the zero points of rows P c ... P c + P - 1; not symmetric
    weight_g_idx       i32  (K,)            group of each column; only in activation order

Codes and zero points are signed numbers plus half their range. Targets and ignored modules in config.json are not
evaluated: the tensors of a module show whether it is packed and which of the schemes it follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError
from quant.json_fields import JsonFields, short_repr
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.matrix import FLOATS, PackedMatrix, expect_tensor, read_column_groups
from quant.sources.packed.scheme import PackedScheme, check_absent, read_bits, read_group_size
from quant.sources.packed.words import WORD_BITS, unpack, words_for
from quant.sources.source import short_name

_FORMAT = "pack-quantized"
_ORDERED = ("group", "dynamic", True)
_UNORDERED = (None, "weight", "static", False)
_MAX_SCHEMES = 64


@dataclass(frozen=True)
class WeightScheme:
    """Settings of the weights of one group of modules; see `quant.sources.packed.gptq.GptqScheme`."""

    bits: int
    group_size: int
    symmetric: bool
    activation_order: bool


@dataclass(frozen=True)
class CompressedScheme(PackedScheme):
    """Settings of a checkpoint: those of each group of modules."""

    weights: tuple[WeightScheme, ...]

    suffix = ".weight_packed"

    @classmethod
    def parse(cls, fields: JsonFields) -> CompressedScheme:
        """Read quantization_config. Raises the error of `fields` for unsupported values."""
        _check_format(fields, fields.required_text("format"))
        if fields.text("quantization_status", "compressed") != "compressed":
            status = short_repr(fields.values["quantization_status"])
            raise fields.invalid(f"quantization_status {status} is not supported; only 'compressed' is")
        sparsity = fields.values.get("sparsity_config")
        if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format") != "dense"):
            raise fields.invalid("sparse weights (sparsity_config) are not supported")
        check_absent(
            fields,
            {
                "kv_cache_scheme": "scales of a quantised KV cache",
                "transform_config": "transformed weights",
                "moe_sparsity_config": "sparse experts",
            },
        )
        groups = {short_name(name, 60): group for name, group in fields.mapping("config_groups").items()}
        if not 1 <= len(groups) <= _MAX_SCHEMES:
            raise fields.invalid(f"config_groups has {len(groups)} groups, expected 1 to {_MAX_SCHEMES}")
        named = JsonFields(groups, f"{fields.where}: config_groups", fields.error, fields.remedy)
        return cls(tuple(_parse_group(named.inner(name)) for name in groups))

    def open_matrix(self, checkpoint: HuggingFaceCheckpoint, module: str) -> CompressedMatrix:
        """Check the tensors of a module. Raises CheckpointError if they contradict each other or the settings."""
        name = f"{module}.weight_packed"
        packed_rows, words = expect_tensor(checkpoint, name, ("I32",), (None, None))
        expect_tensor(checkpoint, f"{module}.weight_shape", ("I32", "I64"), (2,))
        rows, columns = map(int, checkpoint.raw(f"{module}.weight_shape"))
        _, groups = expect_tensor(checkpoint, f"{module}.weight_scale", FLOATS, (packed_rows, None))
        symmetric = f"{module}.weight_zero_point" not in checkpoint.stored
        for scheme in self.weights if rows == packed_rows and columns > 0 else ():
            group_size = scheme.group_size or columns
            fits = words == words_for(columns, scheme.bits) and groups == -(-columns // group_size)
            if fits and symmetric == scheme.symmetric:
                return CompressedMatrix(checkpoint, module, (rows, columns), group_size, scheme)
        raise CheckpointError(
            f"{checkpoint.path}: the tensors of module {short_name(module)} do not fit the weights that "
            "quantization_config describes; one of the two is from another model"
        )


class CompressedMatrix(PackedMatrix):
    """Matrix of a module of a checkpoint of compressed-tensors."""

    def __init__(
        self,
        checkpoint: HuggingFaceCheckpoint,
        module: str,
        shape: tuple[int, int],
        group_size: int,
        scheme: WeightScheme,
    ) -> None:
        names = [f"{module}.{part}" for part in ("weight_packed", "weight_scale", "weight_shape")]
        rows, columns = shape
        groups = -(-columns // group_size)
        if not scheme.symmetric:
            names.append(f"{module}.weight_zero_point")
            expect_tensor(checkpoint, names[-1], ("I32",), (words_for(rows, scheme.bits), groups))
        column_groups, order = None, f"{module}.weight_g_idx"
        if order in checkpoint.stored:
            names.append(order)
            if not _is_unset(checkpoint, order):
                column_groups = read_column_groups(checkpoint, order, columns, group_size, groups)
        elif scheme.activation_order:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {short_name(order)} is missing, which activation order (actorder) needs; "
                "download the checkpoint again"
            )
        super().__init__(
            checkpoint,
            names,
            shape=shape,
            bits=scheme.bits,
            group_size=group_size,
            symmetric=scheme.symmetric,
            column_groups=column_groups,
        )
        self._module = module

    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the codes of rows `start` to `stop`, exclusive, (rows, K)."""
        words = self.checkpoint.raw(f"{self._module}.weight_packed", start, stop)
        return unpack(words, self.bits)[:, : self.shape[1]]

    def zeros(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the zero points of rows, (rows, G)."""
        per_word = WORD_BITS // self.bits
        first = start // per_word
        words = self.checkpoint.raw(f"{self._module}.weight_zero_point", first, -(-stop // per_word))
        return unpack(words.T, self.bits)[:, start - first * per_word : stop - first * per_word].T

    def stored_scales(self) -> NDArray[Any]:
        """Return a view of the scales in the file, (N, G); bf16 numbers are u2."""
        return self.checkpoint.raw(f"{self._module}.weight_scale")

    def release(self, start: int, stop: int) -> None:
        """Release the memory of rows `start` to `stop`, exclusive."""
        for part in ("weight_packed", "weight_scale"):
            self.checkpoint.release(f"{self._module}.{part}", start, stop)


def _parse_group(fields: JsonFields) -> WeightScheme:
    """Read one entry of config_groups. Raises the error of `fields` for unsupported values."""
    _check_format(fields, fields.text("format", _FORMAT))
    check_absent(fields, {"input_activations": "quantised activations", "output_activations": "quantised activations"})
    weights = fields.inner("weights")
    if weights.text("type", "int") != "int":
        raise weights.invalid(f"codes of type {short_repr(weights.values['type'])} are not supported; only 'int' is")
    if weights.values.get("dynamic") not in (None, False):
        raise weights.invalid("dynamic quantisation of weights is not supported")
    order = weights.values.get("actorder")
    if order not in (*_UNORDERED, *_ORDERED):
        raise weights.invalid(f"actorder {short_repr(order)} is not supported")
    strategy = weights.required_text("strategy")
    if strategy not in ("group", "channel"):
        raise weights.invalid(f"strategy {short_repr(strategy)} is not supported; only 'group' and 'channel' are")
    return WeightScheme(
        bits=read_bits(weights, "num_bits"),
        group_size=read_group_size(weights) if strategy == "group" else 0,
        symmetric=weights.boolean("symmetric", True),
        activation_order=order in _ORDERED,
    )


def _check_format(fields: JsonFields, name: str | None) -> None:
    if name != _FORMAT:
        raise fields.invalid(f"format {short_repr(name)} of compressed-tensors is not supported; only '{_FORMAT}' is")


def _is_unset(checkpoint: HuggingFaceCheckpoint, name: str) -> bool:
    """Return whether the group of every column is -1, which stands for no order."""
    return checkpoint.stored[name].dtype in ("I32", "I64") and bool((checkpoint.raw(name) == -1).all())
