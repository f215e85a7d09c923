"""Choose the format of each tensor from its name, its shape and the requested conversion.

Presets (`quant.presets`; layouts: `quant.formats`):

    q4        matrices q4; embedding, head, and sensitive matrices of the first eighth of layers q6
    q4-small  matrices q4; head and tied embedding q6
    q6        every matrix q6
    q8        every matrix q8
    lin4      matrices lin4 with zero points; head and tied embedding lin8
    lin8      every matrix lin8
    dense     matrices unquantised: bf16 stays bf16, every other type becomes f32
    imported  matrices that a quantised source stores in a packed format stay as they are; every other matrix q8

The model family defines the sensitive matrices; those of Qwen2 are the attention's and down_proj. Norms and biases are
float32 vectors in every preset: the key biases of Qwen2 reach norms of 900 and do not tolerate rounding.

`bits` and `group_size` select a preset indirectly: 4/32 is q4, 6/32 is q6, 8/32 is q8, and groups of 64 or 128 are
lin4 or lin8. If several format records match, the first in `FORMATS` is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quant.errors import ArgumentError, FormatError
from quant.families import expected_tensors, family_of
from quant.formats import FORMATS, Format, Layout, layout
from quant.formats.dense import BF16, F32, VECTOR
from quant.model_config import ModelConfig
from quant.presets import DEFAULT_PRESET, IMPORTED, IMPORTED_PRESET, PRESETS, Preset


@dataclass(frozen=True)
class ConversionSpec:
    """Preset of a conversion, and what overrides it.

    Attributes:
        preset: name of the preset.
        group_size: group size of its matrices, 0 for dense. A matrix that the preset `imported` keeps has the group
            size of the source.
        choices: names of matrices -> format, instead of that of the preset. A format that does not support `group_size`
            uses its first group size.
    """

    preset: str
    group_size: int
    choices: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TensorPlan:
    """Format and sizes of one tensor to convert; the sizes are in bytes.

    `kept` means that the codes of the source are stored unchanged. `requantised_from` is the quantised type of the
    tensor in the source if they are not, otherwise empty.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    group_size: int
    zeros: bool
    source_bytes: int
    packed_bytes: int
    kept: bool = False
    requantised_from: str = ""

    @property
    def parameters(self) -> int:
        """Number of weights without padding rows."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Packed bits per weight, including scales and padding rows."""
        return 8 * self.packed_bytes / self.parameters


def conversion_spec(
    preset: str | None = None, bits: int | None = None, group_size: int | None = None, *, quantised: bool = False
) -> ConversionSpec:
    """Return the conversion that the arguments describe.

    Args:
        preset: name of a preset. None: `imported` for a quantised source without other arguments, otherwise `q4`.
        bits: bits per weight.
        group_size: weights per group.
        quantised: whether the source is quantised.

    Raises:
        ArgumentError: an argument is unknown, or two of them contradict each other.
    """
    grouped = _convertible()
    requested = preset is not None
    if preset is None:
        preset = IMPORTED_PRESET if quantised and bits is None and group_size is None else DEFAULT_PRESET
    if preset == IMPORTED_PRESET:
        return _imported_spec(bits, group_size, quantised)
    if preset not in PRESETS and preset not in [fmt.name for fmt in grouped]:
        raise ArgumentError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if bits not in (None, *(choice := bit_choices())):
        raise ArgumentError(f"{bits} bits are not supported; choose {_join_with_or(choice)}")
    if group_size not in (None, *(choice := group_size_choices())):
        raise ArgumentError(f"group size {group_size} is not supported; choose {_join_with_or(choice)}")
    matrices = _find_preset(preset).matrices
    if matrices is None:
        if bits is not None or group_size is not None:
            raise ArgumentError(f"preset {preset!r} does not quantise; leave out bits and group size")
        return ConversionSpec(preset, 0)
    fmt = FORMATS[matrices]
    if bits not in (None, fmt.bits):
        if requested:  # a default cannot contradict
            raise ArgumentError(f"preset {preset!r} contradicts {bits} bits; leave out one of them")
        fmt = next(other for other in grouped if other.bits == bits)
        preset = fmt.name
    group_size = group_size or fmt.group_sizes[0]
    if group_size in fmt.group_sizes:
        return ConversionSpec(preset, group_size)
    fitting = [other.name for other in grouped if other.bits == fmt.bits and group_size in other.group_sizes]
    if preset != fmt.name or not fitting:
        raise ArgumentError(
            f"preset {preset!r} supports groups of {_join_with_or(fmt.group_sizes)}; "
            f"leave out group size {group_size} or the preset"
        )
    return ConversionSpec(fitting[0], group_size)


def _imported_spec(bits: int | None, group_size: int | None, quantised: bool) -> ConversionSpec:
    if not quantised:
        raise ArgumentError(f"preset {IMPORTED_PRESET!r} needs a quantised source; choose one of {', '.join(PRESETS)}")
    if bits is not None or group_size is not None:
        raise ArgumentError(f"preset {IMPORTED_PRESET!r} keeps the source's formats; leave out bits and group size")
    assert IMPORTED.matrices is not None
    return ConversionSpec(IMPORTED_PRESET, FORMATS[IMPORTED.matrices].group_sizes[0])


def bit_choices() -> list[int]:
    """Return the valid values of `bits`."""
    return sorted({fmt.bits for fmt in _convertible()})


def group_size_choices() -> list[int]:
    """Return the valid values of `group_size`."""
    return sorted({size for fmt in _convertible() for size in fmt.group_sizes})


def _convertible() -> list[Format]:
    """Return the grouped formats that float values can be converted to."""
    return [fmt for fmt in FORMATS.values() if fmt.group_sizes and fmt.quantiser is not None]


def _join_with_or(numbers: Sequence[int]) -> str:
    """Return a list for messages: "32, 64 or 128"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def _find_preset(name: str) -> Preset:
    if name == IMPORTED_PRESET:
        return IMPORTED
    return PRESETS.get(name) or Preset(f"all matrices {name}", name)


def plan_tensors(
    config: ModelConfig, spec: ConversionSpec, dtypes: dict[str, str], nbytes: dict[str, int]
) -> list[TensorPlan]:
    """Return the plan of every tensor of the model, in module order.

    Args:
        config: hyperparameters of the model.
        spec: requested conversion.
        dtypes: storage type of each source tensor: "bf16", "f16" or "f32".
        nbytes: stored bytes of each source tensor.

    Raises:
        ArgumentError: a choice of `spec` is not possible.
        FormatError: the shape of a tensor does not fit its format. The message names the tensor.
    """
    plans = []
    expected = expected_tensors(config)
    _check_choices(expected, spec.choices)
    for name, shape in expected.items():
        fmt = choose_format(name, shape, config, spec, dtypes[name])
        groups = spec.group_size if fmt.group_sizes else 0
        if name in spec.choices and groups not in fmt.group_sizes:
            groups = fmt.group_sizes[0]
        try:
            parts = fmt.layout(shape, groups, fmt.stores_zeros)
        except FormatError as exc:
            raise FormatError(f"tensor {name} cannot be stored: {exc}; choose another group size") from exc
        packed = _packed_bytes(parts)
        plans.append(TensorPlan(name, shape, fmt.name, groups, fmt.stores_zeros, nbytes[name], packed))
    return plans


def _check_choices(shapes: Mapping[str, tuple[int, ...]], choices: Mapping[str, str]) -> None:
    """Raise ArgumentError unless all choices give matrices of the model a format that floats can be converted to."""
    formats = [fmt.name for fmt in _convertible()]
    for name, chosen in choices.items():
        if len(shapes.get(name, ())) != 2:
            raise ArgumentError(f"the model has no matrix {name!r}; remove it from the choices of formats")
        if chosen not in formats:
            raise ArgumentError(f"tensor {name} cannot become {chosen!r}; choose one of {', '.join(formats)}")


def keep_home(plan: TensorPlan, spec: ConversionSpec, home: str, group_size: int, zeros: bool) -> TensorPlan:
    """Return the plan of a matrix that the source stores quantised.

    The preset `imported` keeps the source's format. Other presets, and choices, keep the codes of a matrix whose format
    and group size are those of the source.

    Args:
        plan: plan of the matrix as if its values were not quantised.
        spec: requested conversion.
        home: name of the format that stores the source's codes unchanged.
        group_size: weights per scale in the source.
        zeros: whether the source has zero points.

    Raises:
        FormatError: the shape of the matrix does not fit its home. The message names the tensor.
    """
    decided = spec.preset != IMPORTED_PRESET or plan.name in spec.choices
    if decided and (plan.format, plan.group_size) != (home, group_size):
        return plan
    try:
        parts = layout(home, plan.shape, group_size, zeros)
    except FormatError as exc:
        raise FormatError(f"tensor {plan.name} cannot be kept: {exc}; choose a preset") from exc
    return replace(plan, format=home, group_size=group_size, zeros=zeros, packed_bytes=_packed_bytes(parts), kept=True)


def _packed_bytes(parts: Layout) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in parts.values())


def choose_format(name: str, shape: tuple[int, ...], config: ModelConfig, spec: ConversionSpec, dtype: str) -> Format:
    """Return the format of one tensor. `dtype` is its storage type in the source."""
    preset = _find_preset(spec.preset)
    if len(shape) == 1:
        return VECTOR
    if name in spec.choices:
        return FORMATS[spec.choices[name]]
    if preset.matrices is None:
        return BF16 if dtype == BF16.name else F32
    chosen = None
    if family_of(config).is_head(name, config):
        chosen = preset.head
    elif family_of(config).is_embedding(name, config):
        chosen = preset.embedding
    elif preset.sensitive is not None and is_sensitive(name, config):
        chosen = preset.sensitive
    return FORMATS[chosen or preset.matrices]


def is_sensitive(name: str, config: ModelConfig) -> bool:
    """Return whether `name` is a sensitive matrix of the first eighth of the layers (at least one)."""
    family = family_of(config)
    layer = family.layer_of(name)
    if layer is None or not name.endswith(family.sensitive_suffixes):
        return False
    return layer < max(1, config.num_layers // 8)
