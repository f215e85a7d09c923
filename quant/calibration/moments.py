"""Second moments of the inputs of matrices, and the protocol of whatever provides them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quant.families import expected_tensors, family_of
from quant.formats import PackedTensor
from quant.model_config import ModelConfig

Block = NDArray[np.float32]

MAX_BLOCK = 5120
"""Most columns of a block: its matrix has 105 MB. `down_proj` of Qwen2-7B, with 18,944 columns, gets four blocks."""
BLOCK_MULTIPLE = 128
"""Blocks begin at a multiple of this number of columns, so that no group of weights is divided."""
HEAD_INPUT = "head"


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Second moments of the input x (K,) of a matrix, as diagonal blocks of the (K, K) matrix.

    Attributes:
        blocks: means of x xᵀ over all samples, (b, b) f32 each, columns in order. The sizes b add up to K.
        samples: number of tokens.
        cross: means of y xᵀ per block, if x is the input behind quantised layers: y is the input of the same tokens in
            the float model. None otherwise.
    """

    blocks: Sequence[Block]
    samples: int
    cross: Sequence[Block] | None = None


class Calibration(Protocol):
    """Moments of the inputs of a model's matrices, for one conversion."""

    @property
    def fingerprint(self) -> str:
        """Identity of the statistics, which the manifest records."""

    @property
    def ordered(self) -> bool:
        """Whether tensors must be asked for and finished in module order."""

    def moments(self, tensor: str) -> InputMoments | None:
        """Return the moments of the input of matrix `tensor`, or None if it is encoded without feedback.

        Threads may share the calibration. Raises StatisticsError if the statistics are damaged.
        """

    def finished(self, tensor: str, packed: PackedTensor) -> None:
        """Take note that `tensor` has been encoded as `packed`, and written."""


def block_sizes(columns: int) -> tuple[int, ...]:
    """Return the sizes of the diagonal blocks of an input of `columns` columns: as few as possible, nearly equal."""
    count = -(-columns // MAX_BLOCK)
    size = -(-columns // count)
    size = -(-size // BLOCK_MULTIPLE) * BLOCK_MULTIPLE
    return tuple(min(size, columns - start) for start in range(0, columns, size))


def input_of(tensor: str, config: ModelConfig) -> str | None:
    """Return the name of the input of matrix `tensor`, or None for a vector or an embedding that is not the head.

    The names are `model.layers.N.` with the family's name of the input, and `head`.
    """
    family = family_of(config)
    if family.is_head(tensor, config):
        return HEAD_INPUT
    layer = family.layer_of(tensor)
    if layer is None:
        return None
    prefix = f"{family.layer_prefix}{layer}."
    kind = family.input_kinds.get(tensor.removeprefix(prefix))
    return None if kind is None else prefix + kind


def input_columns(config: ModelConfig) -> dict[str, int]:
    """Return the number of columns K of every input by name, in module order. The head is the last."""
    found: dict[str, int] = {}
    for tensor, shape in expected_tensors(config).items():
        name = input_of(tensor, config)
        if name is not None:
            found[name] = shape[1]
    found[HEAD_INPUT] = found.pop(HEAD_INPUT)  # The embedding of a tied model is the first tensor.
    return found
