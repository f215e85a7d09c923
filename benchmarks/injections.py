"""Give a copy of a checkpoint the outliers that Qwen2 is known for, without changing what it computes.

Each function takes a checkpoint and returns another with the same logits; scales are powers of two, so that no bit is
lost. What is huge in real checkpoints is huge here as well: key biases of norm 600 to 900 in the first and last layers,
single inputs of `down_proj`, single channels behind a norm, and the whole residual.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from quant.safe_files import COPIED_FILES
from quant.sources import open_source

FIRST_KEY_BIAS_NORM, LAST_KEY_BIAS_NORM = 600.0, 900.0
BIASED_PAIRS = 4  # of each KV head at most
SLOW_POSITIONS = 8192  # a pair that turns by less than a radian over so many positions is slow
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights in f32 by name, and the values of config.json that go with them."""

    config: ModelConfig
    values: dict[str, Any]
    tensors: Tensors

    def changed(self, **tensors: NDArray[np.float32]) -> Tensors:
        """Return the weights with some of them replaced."""
        return {**self.tensors, **tensors}

    def ends(self) -> tuple[str, str]:
        """Return the prefixes of the names in the first and the last layer."""
        return "model.layers.0.", f"model.layers.{self.config.num_layers - 1}."


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint into memory."""
    with open_source(folder) as source:
        tensors: Tensors = {}
        for name in source.tensors:
            rows = source.read(name)
            tensors[name] = rows if isinstance(rows, np.ndarray) else rows.dequantise()
        return Checkpoint(source.config, json.loads(source.files["config.json"]), tensors)


def write(checkpoint: Checkpoint, folder: Path, original: Path) -> None:
    """Write a checkpoint in f32, with the tokenizer and template of the original."""
    folder.mkdir(parents=True)
    for name in COPIED_FILES:
        if (original / name).is_file():
            shutil.copyfile(original / name, folder / name)
    (folder / "config.json").write_text(json.dumps({**checkpoint.values, "torch_dtype": "float32"}, indent=2) + "\n")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, values in checkpoint.tensors.items():
        end = offset + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in checkpoint.tensors.values():
            file.write(np.ascontiguousarray(values, dtype="<f4").data)


def widen(checkpoint: Checkpoint) -> Checkpoint:
    """Double the size of the heads; what is new is zero.

    Pair i of the old rotary embedding has the frequency of pair 2i of the new one, so the old pairs go there. The odd
    pairs are free: no query has a part in them. Scores are divided by the root of the size, which queries make up for.

    Raises:
        ValueError: the family has a norm on each head, which depends on the size.
    """
    config = checkpoint.config
    if config.model_type != "qwen2":
        raise ValueError(f"{config.model_type}: only heads of qwen2 can be widened")
    size, wide = config.head_dim, 2 * config.head_dim
    rotary = np.concatenate((np.arange(0, size, 2), size + np.arange(0, size, 2)))  # new place of each old feature
    plain = np.arange(size)
    found = dict(checkpoint.tensors)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}.self_attn."
        for name, heads, places, factor in (
            ("q_proj", config.num_heads, rotary, math.sqrt(2)),
            ("k_proj", config.num_kv_heads, rotary, 1.0),
            ("v_proj", config.num_kv_heads, plain, 1.0),
        ):
            for kind in ("weight", "bias"):
                old = found[f"{prefix}{name}.{kind}"].reshape(heads, size, -1)
                new = np.zeros((heads, wide, old.shape[2]), np.float32)
                new[:, places] = old * np.float32(factor)
                found[f"{prefix}{name}.{kind}"] = new.reshape(heads * wide, -1) if kind == "weight" else new.reshape(-1)
        old = found[prefix + "o_proj.weight"].reshape(-1, config.num_heads, size)
        new = np.zeros((len(old), config.num_heads, wide), np.float32)
        new[:, :, :size] = old
        found[prefix + "o_proj.weight"] = new.reshape(len(old), -1)
    return Checkpoint(replace(config, head_dim=wide), {**checkpoint.values, "head_dim": wide}, found)


def key_biases(checkpoint: Checkpoint) -> Checkpoint:
    """Give the keys of the first and last layers biases of norm 600 and 900, in pairs that no query reads.

    A constant in a pair that queries read would add a number that depends on the distance of two tokens. So the heads
    are widened first. The biases are in slow pairs, as in Qwen2; the slowest one at least.
    """
    wide = widen(checkpoint)
    size, heads = wide.config.head_dim, wide.config.num_kv_heads
    frequencies = wide.config.rope_theta ** (-np.arange(0, size, 2) / size)
    slow = int(np.sum(frequencies[1::2] * SLOW_POSITIONS < 1))
    free = np.arange(1, size // 2, 2)[-min(BIASED_PAIRS, max(1, slow)) :]
    places = np.concatenate((free, free + size // 2))
    signs = np.where(np.arange(len(places)) % 2, -1.0, 1.0) * np.linspace(1, 2, len(places))
    found = dict(wide.tensors)
    for prefix, norm in zip(wide.ends(), (FIRST_KEY_BIAS_NORM, LAST_KEY_BIAS_NORM), strict=True):
        name = prefix + "self_attn.k_proj.bias"
        bias = found[name].reshape(heads, size).copy()
        bias[:, places] = signs * norm / (np.linalg.norm(signs) * math.sqrt(heads))
        found[name] = bias.reshape(-1)
    return replace(wide, tensors=found)


def huge_inputs(checkpoint: Checkpoint, factor: float = 64.0) -> Checkpoint:
    """Make one input of `down_proj` huge in the first and last layers: its row of `up_proj` grows, its column shrinks.

    The input is the one whose row and column have the largest product of norms.
    """
    found = dict(checkpoint.tensors)
    for prefix in checkpoint.ends():
        up, down = found[prefix + "mlp.up_proj.weight"].copy(), found[prefix + "mlp.down_proj.weight"].copy()
        place = int(np.argmax(np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)))
        up[place] *= np.float32(factor)
        down[:, place] /= np.float32(factor)
        found.update({prefix + "mlp.up_proj.weight": up, prefix + "mlp.down_proj.weight": down})
    return replace(checkpoint, tensors=found)


def huge_channels(checkpoint: Checkpoint, factor: float = 64.0) -> Checkpoint:
    """Make one channel behind each norm of the first and last layers huge; the columns that read it shrink."""
    found = dict(checkpoint.tensors)
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for prefix in checkpoint.ends():
        for norm, names in readers.items():
            weight = found[f"{prefix}{norm}.weight"].copy()
            place = int(np.argmax(np.abs(weight)))
            weight[place] *= np.float32(factor)
            found[f"{prefix}{norm}.weight"] = weight
            for name in names:
                matrix = found[f"{prefix}{name}.weight"].copy()
                matrix[:, place] /= np.float32(factor)
                found[f"{prefix}{name}.weight"] = matrix
    return replace(checkpoint, tensors=found)


def large_residual(checkpoint: Checkpoint, factor: float = 64.0) -> Checkpoint:
    """Multiply the whole residual: the norms divide by its size, so nothing behind them changes."""
    config = checkpoint.config
    found = dict(checkpoint.tensors)
    writers = ("embed_tokens.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight")
    for name, values in checkpoint.tensors.items():
        if name.endswith(writers):
            found[name] = values * np.float32(factor)
    if config.tie_word_embeddings:
        found["model.norm.weight"] = found["model.norm.weight"] / np.float32(factor)
    eps = config.rms_norm_eps * factor**2
    return Checkpoint(replace(config, rms_norm_eps=eps), {**checkpoint.values, "rms_norm_eps": eps}, found)


INJECTIONS: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "wide-heads": widen,
    "key-biases": key_biases,
    "down-inputs": huge_inputs,
    "norm-channels": huge_channels,
    "residual": large_residual,
}
"""Injections by name. `wide-heads` has no outliers: it is what `key-biases` is compared with."""
