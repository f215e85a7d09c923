"""Export compressed-tensors checkpoints in the format pack-quantized (W4A16, W8A16), which vLLM and transformers load.

A matrix of N rows, K columns and G groups of b-bit codes is stored as

    weight_packed      I32 [N, K b/32]       the codes of a row from the lowest bit on
    weight_scale       f16 or bf16 [N, G]
    weight_shape       I64 [2]               N, K
    weight_zero_point  I32 [ceil(N b/32), G] the zero points of a column from the lowest bit on, if not all are 2^(b-1)

    value = scale * (code - zero)

The embedding and the head stay unquantised, as engines expect.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.container import ModelFolder
from quant.errors import ArgumentError
from quant.exporters.checkpoint import config_values, float_tensor
from quant.exporters.export_plan import EncodedRows, ExportPlan, ExportSpec, FileEntry, TensorExport
from quant.exporters.floats import ITEM_BYTES, round_to
from quant.exporters.grids import Scheme, is_grid, scheme_of, to_grid
from quant.exporters.model_files import small_files
from quant.exporters.safetensors_files import json_file, weight_files
from quant.families import expected_tensors, family_of
from quant.formats import PackedTensor

_DEFAULT_DTYPE = "f16"
_DTYPES = ("f16", "bf16")
_WORD_BITS, _BYTE_BITS = 32, 8
_FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
"""Matrices of a layer that engines join into one, so that they must have the same scheme."""

Schemes = dict[str, Scheme]
"""Module name -> scheme of its matrix."""


def plan_pack_quantized(model: ModelFolder, spec: ExportSpec) -> ExportPlan:
    """Plan the export of a model as a compressed-tensors checkpoint.

    Raises:
        ArgumentError: the model has no quantised matrix and `bits` is missing, or `dtype` does not fit.
        ContainerError: a small file of the model is missing or damaged.
    """
    dtype = spec.dtype or _DEFAULT_DTYPE
    if dtype not in _DTYPES:
        raise ArgumentError(f"compressed-tensors has scales of type {' or '.join(_DTYPES)}, not {dtype}")
    schemes = _schemes(model, spec.bits)
    if not schemes:
        raise ArgumentError(
            f"{model.path} has no quantised matrix; give 4 or 8 bits to quantise it, or export it as safetensors"
        )
    tensors = [
        _packed_tensor(model, name, schemes[_module(name)], dtype, spec.bits)
        if len(shape) > 1 and _module(name) in schemes
        else float_tensor(model, name, dtype)
        for name, shape in expected_tensors(model.config).items()
    ]
    weights, index = weight_files(tensors, spec)
    files = small_files(model)
    config = config_values(files, dtype) | {"quantization_config": _quantization_config(model, schemes)}
    return ExportPlan(weights, {**files, "config.json": json_file(config), **index})


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _schemes(model: ModelFolder, bits: int | None) -> Schemes:
    """Return the scheme of each matrix to quantise, the same for matrices that engines join."""
    family = family_of(model.config)
    schemes: Schemes = {}
    for name, shape in expected_tensors(model.config).items():
        if len(shape) == 1 or family.layer_of(name) is None:
            continue
        if (scheme := scheme_of(model.tensor(name), bits)) is not None:
            schemes[_module(name)] = scheme
    for layer in range(model.config.num_layers):
        for joined in _FUSED:
            modules = [f"{family.layer_prefix}{layer}.{module}" for module in joined]
            if all(module in schemes for module in modules):
                schemes |= dict.fromkeys(modules, _common_scheme([schemes[module] for module in modules]))
    return schemes


def _common_scheme(schemes: Sequence[Scheme]) -> Scheme:
    """Return the smallest scheme that holds grids of all given schemes without loss."""
    bits, groups = max(scheme.bits for scheme in schemes), min(scheme.group_size for scheme in schemes)
    return Scheme(bits, groups, all(scheme.symmetric for scheme in schemes))


def _packed_tensor(model: ModelFolder, name: str, scheme: Scheme, dtype: str, bits: int | None) -> TensorExport:
    packed = model.tensor(name)
    rows, columns = packed.shape
    groups = columns // scheme.group_size
    words = columns * scheme.bits // _WORD_BITS
    shape = np.array(packed.shape, "<i8").tobytes()
    entries = [
        FileEntry(f"{name}_packed", "i32", (rows, words), 4 * rows * words),
        FileEntry(f"{name}_scale", dtype, (rows, groups), ITEM_BYTES[dtype] * rows * groups),
        FileEntry(f"{name}_shape", "i64", (2,), len(shape), shape),
    ]
    if not scheme.symmetric:
        lines = math.ceil(rows * scheme.bits / _WORD_BITS)
        entries.append(FileEntry(f"{name}_zero_point", "i32", (lines, groups), 4 * lines * groups))
    target = f"W{scheme.bits}A16, groups of {scheme.group_size}{'' if scheme.symmetric else ' with zero points'}"
    encode = partial(_encode, scheme=scheme, dtype=dtype, bits=bits, name=name)
    return TensorExport(name, packed.shape, packed.format, target, tuple(entries), encode)


def _encode(packed: PackedTensor, scheme: Scheme, dtype: str, bits: int | None, name: str) -> EncodedRows:
    grid = to_grid(packed, bits).on(scheme)
    scales, rounded = round_to(grid.scales, dtype, f"tensor {name}: the scale")
    parts = [pack_columns(grid.codes, scheme.bits), scales]
    if not scheme.symmetric:
        parts.append(_pack_zeros(grid.zeros, scheme.bits))
    exact = is_grid(packed) and dtype == "f16"
    return EncodedRows(tuple(parts), None if exact else grid.decode(rounded))


def pack_columns(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes (rows, K) of 4 or 8 bits as bytes, the first code of each byte in its low bits."""
    return codes if bits == _BYTE_BITS else codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))


def _pack_zeros(zeros: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    """Return zero points (rows, G) as words (ceil(rows bits / 32), G). Missing rows are zero."""
    per_word = _WORD_BITS // bits
    padded = np.pad(zeros, ((0, -zeros.shape[0] % per_word), (0, 0)))
    packed = pack_columns(np.ascontiguousarray(padded.T), bits)
    return np.ascontiguousarray(np.ascontiguousarray(packed).view("<u4").T)


def _quantization_config(model: ModelFolder, schemes: Schemes) -> dict[str, Any]:
    modules: dict[Scheme, list[str]] = defaultdict(list)
    for module, scheme in schemes.items():
        modules[scheme].append(module)
    linear = [_module(name) for name, shape in expected_tensors(model.config).items() if len(shape) > 1]
    family = family_of(model.config)
    unquantised = [name for name in linear if name not in schemes and family.layer_of(f"{name}.weight") is not None]
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if len(modules) == 1 else _patterns(members, family.layer_prefix),
            "weights": _weight_arguments(scheme),
            "input_activations": None,
            "output_activations": None,
        }
        for number, (scheme, members) in enumerate(modules.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [_module(family.head_name), *unquantised],
        "config_groups": groups,
    }


def _weight_arguments(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }


def _patterns(modules: Sequence[str], layer_prefix: str) -> list[str]:
    """Return one regular expression per set of layers that matches exactly these modules."""
    layers: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        number, _, suffix = module.removeprefix(layer_prefix).partition(".")
        layers[suffix].append(number)
    suffixes: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for suffix, numbers in layers.items():
        suffixes[tuple(numbers)].append(re.escape(suffix))
    return [
        f"re:{re.escape(layer_prefix)}({'|'.join(numbers)})\\.({'|'.join(members)})$"
        for numbers, members in suffixes.items()
    ]
