"""Formats of all matrices for a whole-model budget of bits per weight.

With measured sensitivities the loss of a matrix in a format is what the file says. Without, it is an estimate: the
noise of the format, times the weights of the matrix, times a factor for its kind and its place, from measurements on
small trained models (docs/guide/quality.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.allocation import Option, allocate, largest_size, smallest_size
from quant.container import align
from quant.errors import ArgumentError
from quant.families import expected_tensors, family_of, parameter_count
from quant.formats import find_format
from quant.formats.dense import VECTOR
from quant.policy import ConversionSpec
from quant.sensitivities import Sensitivities

if TYPE_CHECKING:
    from quant.formats import Layout
    from quant.model_config import ModelConfig
    from quant.sources import Source

BUDGET_FORMATS = ("q4", "q6", "q8")
BUDGET_PRESET = "q4"
"""Preset of a conversion whose matrices are all chosen by a budget."""
_NOISE = {"q4": 1.0, "q6": 0.08, "q8": 0.006}
"""Mean squared rounding error of Gaussian weights, relative to that of q4."""
_KINDS = {
    "q_proj": 3.0,
    "k_proj": 7.0,
    "v_proj": 10.0,
    "o_proj": 4.0,
    "gate_proj": 1.0,
    "up_proj": 0.8,
    "down_proj": 1.0,
}
"""Divergence per weight at equal noise in the layers in the middle, relative to that of gate_proj."""
_FIRST_LAYER, _LAST_LAYER = 15.0, 3.0
_EMBEDDING, _HEAD = 8.0, 3.0


@dataclass(frozen=True)
class BitBudget:
    """Budget of a conversion.

    Attributes:
        bits: most bits of the file of weights per weight of the model.
        sensitivities: measured divergences; None estimates them.
    """

    bits: float
    sensitivities: Sensitivities | None = None


def budget_spec(source: Source, budget: BitBudget) -> ConversionSpec:
    """Return the conversion that keeps a budget and loses little.

    Args:
        source: the open checkpoint.
        budget: the budget.

    Raises:
        ArgumentError: the budget is too small or too large, or the sensitivities are those of another model.
    """
    config, bits, sensitivities = source.config, budget.bits, budget.sensitivities
    if sensitivities is not None and sensitivities.fingerprint not in (None, source.fingerprint):
        raise ArgumentError(f"{sensitivities.path} was measured on another checkpoint; measure this one")
    matrices = budget_options(config, None if sensitivities is None else _measured_losses(config, sensitivities))
    parameters = parameter_count(config)
    vectors = sum(_stored_bytes(VECTOR.layout(shape)) for _, shape in _tensors(config, axes=1))
    allowed = math.floor(bits * parameters / 8) - vectors
    least, most = (8 * (size + vectors) / parameters for size in (smallest_size(matrices), largest_size(matrices)))
    if not least <= bits <= most:
        raise ArgumentError(
            f"a budget of {bits:g} bits per weight is too {'small' if bits < least else 'large'} for this model; "
            f"give {math.ceil(1000 * least) / 1000:.3f} to {math.floor(1000 * most) / 1000:.3f}"
        )
    group_size, *_ = find_format(BUDGET_PRESET).group_sizes
    return ConversionSpec(BUDGET_PRESET, group_size, allocate(matrices, allowed))


def budget_options(config: ModelConfig, losses: Mapping[str, Mapping[str, float]] | None) -> dict[str, list[Option]]:
    """Return the options of each matrix.

    Args:
        config: the model's shapes.
        losses: loss of each matrix in each format; None estimates them.
    """
    found = {}
    for name, shape in _tensors(config, axes=2):
        estimate = _estimated_factor(name, shape, config)
        found[name] = [
            Option(kind, _matrix_bytes(kind, shape), estimate * _NOISE[kind] if losses is None else losses[name][kind])
            for kind in BUDGET_FORMATS
        ]
    return found


def _tensors(config: ModelConfig, axes: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, shape) for name, shape in expected_tensors(config).items() if len(shape) == axes]


def _matrix_bytes(kind: str, shape: tuple[int, ...]) -> int:
    fmt = find_format(kind)
    return _stored_bytes(fmt.layout(shape, fmt.group_sizes[0]))


def _stored_bytes(parts: Layout) -> int:
    """Return the bytes of a tensor in the file, where each part begins at a multiple of the alignment."""
    return sum(align(dtype.itemsize * math.prod(shape)) for dtype, shape in parts.values())


def _measured_losses(config: ModelConfig, sensitivities: Sensitivities) -> Mapping[str, Mapping[str, float]]:
    """Return the measured losses. Raises ArgumentError unless they are those of exactly the matrices of the model."""
    names = {name for name, _ in _tensors(config, axes=2)}
    if unknown := sorted(set(sensitivities.tensors) - names):
        raise ArgumentError(f"{sensitivities.path} has {unknown[0][:200]!r}, which is not a matrix of this model")
    for name in sorted(names):
        missing = [kind for kind in BUDGET_FORMATS if kind not in sensitivities.tensors.get(name, {})]
        if missing:
            raise ArgumentError(f"{sensitivities.path} lacks {name} as {missing[0]}; measure again")
    return sensitivities.tensors


def _estimated_factor(name: str, shape: tuple[int, ...], config: ModelConfig) -> float:
    """Return the estimated loss of a matrix in q4, up to a factor that all matrices share."""
    family = family_of(config)
    size = math.prod(shape)
    layer = family.layer_of(name)
    if layer is None:
        return size * (_HEAD if family.is_head(name, config) and not config.tie_word_embeddings else _EMBEDDING)
    place = _FIRST_LAYER if layer == 0 else _LAST_LAYER if layer == config.num_layers - 1 else 1.0
    return size * place * _KINDS[name.removesuffix(".weight").rpartition(".")[2]]
