"""Packed checkpoints for tests, written from the published formulas of each layout: GPTQ, AWQ, compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quant.families import expected_tensors, parse_config
from tests.quant.checkpoints import CONFIG, encode, random_tensors, write_json, write_safetensors, write_tokenizer

Entry = tuple[str, tuple[int, ...], bytes]
Entries = dict[str, Entry]
AWQ_ROWS = (0, 2, 4, 6, 1, 3, 5, 7)
WIDE = {**CONFIG, "hidden_size": 128, "intermediate_size": 256}
"""Groups of 128 fit every matrix of this config."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Quantised matrix: value (n, k) = scales[n, g] * (codes[n, k] - zeros[n, g]) with g = groups[k].

    `scales` are float32 numbers that `scale_type` holds exactly.
    """

    bits: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    groups: np.ndarray
    scale_type: str = "f16"

    @property
    def values(self) -> np.ndarray:
        """The matrix as float32: the exact products, rounded once."""
        centred = self.codes.astype(np.float64) - self.zeros.astype(np.float64)[:, self.groups]
        return (centred * self.scales.astype(np.float64)[:, self.groups]).astype(np.float32)


def random_grid(
    random: np.random.Generator,
    shape: tuple[int, int],
    bits: int = 4,
    group_size: int = 32,
    *,
    symmetric: bool = False,
    scale_type: str = "f16",
    zeros: tuple[int, int] | None = None,
) -> Grid:
    """Return random codes and scales of both signs. `zeros` limits the zero points; a group size of 0 is one group."""
    rows, columns = shape
    size = group_size or columns
    count = -(-columns // size)
    codes = random.integers(0, 1 << bits, shape, dtype=np.uint8)
    low, high = zeros or (0, (1 << bits) - 1)
    middle = 1 << (bits - 1)
    points = random.integers(low, high, (rows, count), dtype=np.uint8, endpoint=True)
    if symmetric:
        points[:] = middle
    scales = random.uniform(1e-3, 1e-1, (rows, count)) * random.choice([-1, 1], (rows, count))
    return Grid(bits, codes, stored(scales, scale_type), points, np.arange(columns) // size, scale_type)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers as `dtype` stores them, as float32."""
    kind, shape, data = encode(np.asarray(values, np.float32), dtype)
    if kind == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[kind]).astype(np.float32).reshape(shape)


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack (rows, n) numbers along the columns, the first in the lowest bits, padded with zeros to whole words."""
    per_word = 32 // bits
    rows, count = codes.shape
    padded = np.zeros((rows, -(-count // per_word) * per_word), np.uint64)
    padded[:, :count] = codes
    words = np.zeros((rows, padded.shape[1] // per_word), np.uint64)
    for place in range(per_word):
        words |= padded[:, place::per_word] << np.uint64(bits * place)
    return words.astype(np.uint32).view(np.int32)


def integers(values: np.ndarray, dtype: str = "I32") -> Entry:
    """Return an entry of a safetensors file."""
    values = np.ascontiguousarray(values, {"I32": "<i4", "I64": "<i8"}[dtype])
    return dtype, values.shape, values.tobytes()


def gptq(module: str, grid: Grid, *, version: int = 1, g_idx: bool = True) -> Entries:
    """Return the tensors of a GPTQ module."""
    minus = 2 - version
    mask = (1 << grid.bits) - 1
    zeros = (grid.zeros.astype(np.int64) - minus) & mask
    entries = {
        f"{module}.qweight": integers(pack_words(grid.codes, grid.bits).T),
        f"{module}.qzeros": integers(pack_words(zeros.T, grid.bits)),
        f"{module}.scales": encode(grid.scales.T, grid.scale_type),
    }
    if g_idx:
        entries[f"{module}.g_idx"] = integers(grid.groups)
    return entries


def awq(module: str, grid: Grid) -> Entries:
    """Return the tensors of an AWQ module of version "gemm"."""

    def pack(numbers: np.ndarray) -> Entry:
        rows, count = numbers.shape
        ordered = numbers.reshape(rows, count // 8, 8)[:, :, AWQ_ROWS].reshape(rows, count)
        return integers(pack_words(ordered, 4))

    return {
        f"{module}.qweight": pack(grid.codes.T),
        f"{module}.qzeros": pack(grid.zeros.T),
        f"{module}.scales": encode(grid.scales.T, grid.scale_type),
    }


def compressed(
    module: str, grid: Grid, *, symmetric: bool = False, g_idx: bool = False, shape_type: str = "I64"
) -> Entries:
    """Return the tensors of a module of compressed-tensors. Stored numbers are signed ones plus half the range."""
    entries = {
        f"{module}.weight_packed": integers(pack_words(grid.codes, grid.bits)),
        f"{module}.weight_scale": encode(grid.scales, grid.scale_type),
        f"{module}.weight_shape": integers(np.array(grid.codes.shape), shape_type),
    }
    if not symmetric:
        entries[f"{module}.weight_zero_point"] = integers(pack_words(grid.zeros.T, grid.bits).T)
    if g_idx:
        entries[f"{module}.weight_g_idx"] = integers(grid.groups)
    return entries


@dataclass(frozen=True)
class Form:
    """One form of packed checkpoints: settings of its matrices, packer and quantization_config."""

    name: str
    method: str
    bits: int = 4
    group_size: int = 32
    symmetric: bool = False
    version: int = 1
    scale_type: str = "f16"

    def grid(self, random: np.random.Generator, shape: tuple[int, int]) -> Grid:
        """Return a random matrix that the form stores without ambiguity."""
        limits = None
        if self.method == "gptq" and self.version == 1:
            limits = (1, (1 << self.bits) - 1)
        return random_grid(
            random,
            shape,
            self.bits,
            self.group_size,
            symmetric=self.symmetric,
            scale_type=self.scale_type,
            zeros=limits,
        )

    def pack(self, module: str, grid: Grid) -> Entries:
        """Return the tensors of a module."""
        if self.method == "gptq":
            return gptq(module, grid, version=self.version)
        if self.method == "awq":
            return awq(module, grid)
        return compressed(module, grid, symmetric=self.symmetric)

    @property
    def config(self) -> dict[str, Any]:
        """The quantization_config as its tool writes it."""
        size = self.group_size or -1
        if self.method == "gptq":
            settings = {"bits": self.bits, "group_size": size, "damp_percent": 0.01, "desc_act": False}
            label = "gptq" if self.version == 1 else "gptq_v2"
            return {"quant_method": "gptq", **settings, "sym": self.symmetric, "checkpoint_format": label}
        if self.method == "awq":
            settings = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
            return {**settings, "modules_to_not_convert": None}
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False}
        grouped = {"strategy": "group", "group_size": size} if self.group_size else {"strategy": "channel"}
        group = {"targets": ["Linear"], "weights": {**weights, **grouped}}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {**group, "input_activations": None, "output_activations": None}},
        }


FORMS = [
    Form("gptq-v1-int4", "gptq"),
    Form("gptq-v1-int4-sym", "gptq", symmetric=True, group_size=64),
    Form("gptq-v2-int4", "gptq", version=2),
    Form("gptq-v1-int8-sym", "gptq", bits=8, symmetric=True),
    Form("gptq-v2-int8", "gptq", bits=8, version=2, group_size=128),
    Form("gptq-channel", "gptq", group_size=0, symmetric=True),
    Form("awq", "awq", group_size=128),
    Form("w4a16", "compressed-tensors", symmetric=True, scale_type="bf16"),
    Form("w4a16-asym", "compressed-tensors", group_size=64),
    Form("w8a16-channel", "compressed-tensors", bits=8, group_size=0, symmetric=True, scale_type="bf16"),
    Form("w8a16-asym", "compressed-tensors", bits=8, group_size=32, scale_type="f32"),
]


def make_packed(
    folder: Path,
    form: Form,
    *,
    seed: int = 0,
    config: Mapping[str, Any] = WIDE,
    quantisation: Mapping[str, Any] | None = None,
    pack: Callable[[str, Grid], Entries] | None = None,
    edit: Callable[[Entries], object] | None = None,
) -> dict[str, Grid]:
    """Write a random checkpoint whose layers are packed. Return its packed matrices by tensor name.

    Args:
        folder: folder to write; created if missing.
        form: form of the checkpoint.
        seed: seed of the weights.
        config: config.json without quantization_config.
        quantisation: keys of quantization_config to set. The value `...` removes a key.
        pack: function that packs a module. None: that of the form.
        edit: called with the entries of model.safetensors before they are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    settings = {**form.config, **(quantisation or {})}
    settings = {key: value for key, value in settings.items() if value is not ...}
    write_json(folder / "config.json", {**config, "torch_dtype": "float16", "quantization_config": settings})
    write_tokenizer(folder)
    parsed = parse_config(config)
    plain, grids, entries = random_tensors(parsed, seed=seed), {}, {}
    for name, shape in expected_tensors(parsed).items():
        if ".layers." in name and len(shape) == 2:
            grids[name] = form.grid(random, (shape[0], shape[1]))
            if form.scale_type == "f32":  # float16 must hold the scales, otherwise there is no home
                grids[name] = replace(grids[name], scales=stored(grids[name].scales, "f16"))
            entries |= (pack or form.pack)(name.removesuffix(".weight"), grids[name])
        else:
            entries[name] = encode(plain[name], "f16")
    if edit is not None:
        edit(entries)
    write_safetensors(folder / "model.safetensors", entries)
    return grids


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite config.json after `change`."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    write_json(path, values)
