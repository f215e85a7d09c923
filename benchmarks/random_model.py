"""Models in real shapes whose packed weights are random bytes, made at once: for measurements of speed and memory."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.families import expected_tensors, parse_config
from quant.formats import FORMATS, GroupedFormat, PackedTensor
from quant.formats.integer import BYTE_BITS
from quant.model_config import ModelConfig
from qwchat.store.memory_estimate import planned_tensors

SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""Sizes of Qwen2-Instruct, from the published config.json files."""

_COMMON = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768 + 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "torch_dtype": "bfloat16",
}
_BLOCK_BYTES = 4 << 20
_SPREAD = 0.5  # length of a row of weights: activations stay near 1
# Standard deviations of random levels in 8 bits, and of random scales as they are stored: 7 bits beside a table bit.
_LEVELS, _SCALES = 70.0, {"table bit": 37.0, "int8": 74.0, "uint8": 148.0}


def shape_config(shape: str, **changes: Any) -> ModelConfig:
    """Return the config of one of `SHAPES`; `changes` are named as in config.json."""
    return parse_config(_COMMON | SHAPES[shape] | changes)


class RandomModel:
    """Source of tensors of a model; implements `qwchat.model.tensor_source.TensorSource`.

    All tiles of a matrix are the same slice of one random block, so that a model of any size costs no time and little
    memory on the host. The device has them all.
    Scales that multiply others, norms and biases have values that keep activations near 1.

    Args:
        config: the model's shapes.
        preset: formats of the weights; see `quant.policy`.
        seed: of the block.
    """

    path = Path("random-model")

    def __init__(self, config: ModelConfig, preset: str, seed: int = 0) -> None:
        self.config, self.preset = config, preset
        self._layouts = planned_tensors(config, preset)
        self._random = np.random.default_rng(seed)

    @cached_property
    def _block(self) -> NDArray[np.uint8]:
        return self._random.integers(0, 256, _BLOCK_BYTES, np.uint8)

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._layouts)

    def tensor(self, name: str) -> PackedTensor:
        """Return the tensor `name`."""
        layout, shape = self._layouts[name], expected_tensors(self.config)[name]
        if layout.format == "vector":
            values = np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
            return PackedTensor(layout.format, shape, 0, {"values": values})
        spread = _SPREAD / math.sqrt(shape[1])
        parts = {
            part: self._part(layout.format, part, dtype, sizes, spread)
            for part, (dtype, sizes) in layout.layout.items()
        }
        return PackedTensor(layout.format, shape, layout.group_size, parts)

    def _part(self, name: str, part: str, dtype: np.dtype[Any], shape: tuple[int, ...], spread: float) -> NDArray[Any]:
        """Return a part of a matrix in an integer format whose values have the standard deviation `spread`."""
        fmt = FORMATS[name]
        assert isinstance(fmt, GroupedFormat), f"random bytes are no numbers in the format {name}"
        levels = _LEVELS if fmt.table else _LEVELS / (1 << BYTE_BITS - fmt.stored_bits)
        if part == "row_scales":
            scales = _SCALES["table bit" if fmt.shift else fmt.scale]
            return np.full(shape, spread / (levels * scales), dtype)
        if dtype.kind == "f":
            return np.full(shape, spread / levels, dtype)
        start, size = int(self._random.integers(0, 4096)) * 64, math.prod(shape[1:]) * dtype.itemsize
        tile = self._block[start : start + size].view(dtype).reshape(shape[1:])
        return np.broadcast_to(tile, shape)
