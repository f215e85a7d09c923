"""Which format a tensor gets: a function of its name, its shape, and what a person asked for.

Presets (layouts: `quant.formats`):

    q4        matrices q4; head, tied embedding, and sensitive matrices of the first and last eighth of layers q8
    q4-small  matrices q4; head and tied embedding q8
    q8        every matrix q8
    lin4      matrices lin4 with zero points; head and tied embedding lin8
    lin8      every matrix lin8
    dense     matrices as they are: bf16 stays bf16, anything else becomes f32

The family says which matrices are sensitive; those of Qwen2 are down_proj and v_proj.
Norms and biases are float32 vectors in all of them: key biases of Qwen2 reach norms of 900 and bear no rounding.
`bits` and `group_size` are another way to name a preset: 4/32 is q4, 8/32 is q8, groups of 64 or 128 are lin4 or lin8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quant.config import ModelConfig
from quant.errors import FormatError, UsageError
from quant.families import expected_tensors, family_of
from quant.formats import layout
from quant.presets import PRESETS

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Settings:
    """What a conversion makes: a preset and the group size of its matrices (0 for dense)."""

    preset: str
    group_size: int


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be made."""

    name: str
    shape: tuple[int, ...]
    format: str
    group_size: int
    zeros: bool
    source_bytes: int
    packed_bytes: int

    @property
    def parameters(self) -> int:
        """Number of weights, without padding rows."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Packed bits, scales and padding rows included, per weight."""
        return 8 * self.packed_bytes / self.parameters


def resolve(preset: str = "q4", bits: int | None = None, group_size: int | None = None) -> Settings:
    """Turn what a person typed into settings. Raises UsageError for what is unknown or contradictory."""
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if bits not in (None, 4, 8):
        raise UsageError(f"{bits} bits are not supported; choose 4 or 8")
    if group_size not in (None, *GROUP_SIZES):
        raise UsageError(f"group size {group_size} is not supported; choose 32, 64 or 128")
    if preset == "dense":
        if bits is not None or group_size is not None:
            raise UsageError("preset 'dense' keeps the weights as they are; leave out bits and group size")
        return Settings(preset, 0)
    if preset in ("lin4", "lin8"):
        if bits not in (None, int(preset[-1])):
            raise UsageError(f"preset {preset!r} contradicts {bits} bits; leave one of the two out")
        return Settings(preset, group_size or 32)
    if bits == 8 and preset == "q4":  # q4 is the default, so it does not contradict
        preset = "q8"
    if bits is not None and bits != (8 if preset == "q8" else 4):
        raise UsageError(f"preset {preset!r} contradicts {bits} bits; leave one of the two out")
    if group_size in (None, 32):
        return Settings(preset, 32)
    if preset == "q4-small":
        raise UsageError(f"preset 'q4-small' has groups of 32; leave out group size {group_size} or the preset")
    return Settings("lin8" if preset == "q8" else "lin4", int(group_size or 32))


def plan(config: ModelConfig, settings: Settings, dtypes: dict[str, str], nbytes: dict[str, int]) -> list[TensorPlan]:
    """The format of every tensor of `config`, in module order.

    dtypes, nbytes: storage type ("bf16", "f16", "f32") and stored bytes of each source tensor.
    Raises FormatError naming the tensor if its shape does not fit the format.
    """
    plans = []
    for name, shape in expected_tensors(config).items():
        chosen = choose(name, shape, config, settings, dtypes[name])
        groups = 0 if chosen in ("vector", "bf16", "f32") else settings.group_size
        zeros = chosen == "lin4"
        try:
            parts = layout(chosen, shape, groups, zeros)
        except FormatError as exc:
            raise FormatError(f"tensor {name} cannot be stored: {exc}; choose another group size") from exc
        packed = sum(dtype.itemsize * math.prod(part) for dtype, part in parts.values())
        plans.append(TensorPlan(name, shape, chosen, groups, zeros, nbytes[name], packed))
    return plans


def choose(name: str, shape: tuple[int, ...], config: ModelConfig, settings: Settings, dtype: str) -> str:
    """The format of one tensor; `dtype` is its storage type in the source."""
    preset = settings.preset
    if len(shape) == 1:
        return "vector"
    if preset == "dense":
        return "bf16" if dtype == "bf16" else "f32"
    head = family_of(config).is_head(name, config)
    if preset in ("lin4", "lin8"):
        return "lin8" if head else preset
    if preset == "q8" or head or (preset == "q4" and is_sensitive(name, config)):
        return "q8"
    return "q4"


def is_sensitive(name: str, config: ModelConfig) -> bool:
    """Return whether `name` is a sensitive matrix of the first or last eighth (at least one) of the layers."""
    family = family_of(config)
    layer = family.layer_of(name)
    if layer is None or not name.endswith(family.sensitive):
        return False
    eighth = max(1, config.num_layers // 8)
    return layer < eighth or layer >= config.num_layers - eighth
