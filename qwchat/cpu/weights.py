"""Packed tensors as records for the kernels."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.families import Shapes, expected_tensors
from quant.formats import PackedTensor
from qwchat.cpu.kernels.format_kinds import IDS, INTEGER_FORMATS
from qwchat.cpu.kernels.records import BLOCK, MATRIX
from qwchat.errors import ModelError
from qwchat.model.tensor_source import TensorSource

_PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_TILED_PARTS = ("codes", "values", "scales", "zeros", "minimums", "super_scales", "super_minimums")


class Weights:
    """Tensors of one model, as records for the kernels. It keeps the memory alive that the records point to."""

    def __init__(self, folder: TensorSource) -> None:
        self._folder = folder
        self._alive: list[NDArray[Any]] = []
        self._constants: dict[int, int] = {}

    @cached_property
    def _expected(self) -> Shapes:
        return expected_tensors(self._folder.config)

    def _address(self, array: NDArray[Any]) -> int:
        self._alive.append(array)
        return int(array.ctypes.data)

    def _zero_line(self, zero: int) -> int:
        """Return the address of 16 equal zero points, for formats that store none."""
        if zero not in self._constants:
            self._constants[zero] = self._address(np.full(16, zero, np.uint8))
        return self._constants[zero]

    def vector(self, name: str) -> int:
        """Return the address of a norm's weights, (n,) f32. Raises ModelError if the tensor is not a vector."""
        packed = self._folder.tensor(name)
        if packed.format != "vector":
            raise ModelError(f"{self._folder.path}: tensor {name} is stored as {packed.format}; expected a vector")
        return self._address(packed.parts["values"])

    def values(self, name: str) -> NDArray[np.float32]:
        """Return the values of a vector, (n,) f32."""
        values: NDArray[np.float32] = self._folder.tensor(name).parts["values"]
        return values

    def key_bias(self, layer: int) -> NDArray[np.float32]:
        """Return the bias of a layer's keys, (num_kv_heads * head_dim,) f32; zeros in a family without it."""
        config, name = self._folder.config, f"model.layers.{layer}.self_attn.k_proj.bias"
        if name not in self._expected:
            return np.zeros(config.num_kv_heads * config.head_dim, np.float32)
        return self.values(name)

    def _bias(self, name: str, tiles: int) -> int:
        values = self.values(name)
        padded = np.zeros(tiles * 16, np.float32)
        padded[: len(values)] = values
        return self._address(padded)

    def matrix(self, name: str, bias: str | None = None) -> NDArray[Any]:
        """Return a MATRIX record, shape ().

        Args:
            name: the tensor.
            bias: the vector of its bias, None without one.

        Raises:
            ModelError: the kernels cannot run the tensor's format.
        """
        packed = self._folder.tensor(name)
        if packed.format not in IDS:
            raise ModelError(
                f"{self._folder.path}: tensor {name} has the format {packed.format!r}, which the kernels cannot run; "
                "convert the model to another format"
            )
        record = np.zeros((), MATRIX)
        kind, tiles = IDS[packed.format], -(-packed.shape[0] // 16)
        record["kind"], record["rows"], record["columns"] = kind, *packed.shape
        record["tiles"], record["blocks_per_scale"] = tiles, max(1, packed.group_size // BLOCK)
        self._fill_parts(record, packed, kind)
        if bias is not None:
            record["bias"] = self._bias(bias, tiles)
        return record

    def _fill_parts(self, record: NDArray[Any], packed: PackedTensor, kind: int) -> None:
        parts = packed.parts
        tiles = int(record["tiles"])
        for part in _TILED_PARTS:
            if part in parts:
                field = "codes" if part == "values" else part
                record[field] = self._address(parts[part])
                record[f"{field}_step"] = parts[part].nbytes // tiles
        if "row_scales" in parts:
            record["row_scales"] = self._address(parts["row_scales"])
        if "zeros" in parts:
            record["zero_step"] = 16
        elif kind in INTEGER_FORMATS:
            record["zeros"] = self._zero_line(INTEGER_FORMATS[kind].zero)

    def layer(self, index: int, record: Any) -> None:
        """Fill `record`, a LAYER record of layer `index`, except for its cache."""
        prefix = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            record[norm] = self.vector(f"{prefix}.{norm}.weight")
        for norm in ("q_norm", "k_norm"):
            name = f"{prefix}.self_attn.{norm}.weight"
            record[norm] = self.vector(name) if name in self._expected else 0
        for block, names in _PROJECTIONS.items():
            for name in names:
                stem = f"{prefix}.{block}.{name}"
                bias = f"{stem}.bias"
                record[name] = self.matrix(f"{stem}.weight", bias if bias in self._expected else None)
