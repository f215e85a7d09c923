"""Random models, and the reference decoder for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.families import expected_tensors, parse_config
from quant.formats import PackedTensor, dequantise
from quant.model_config import ModelConfig
from quant.quantisers import quantise
from qwchat.cpu.kernels.records import TERMS
from qwchat.cpu.kernels.reference import dequantised_activations
from qwchat.model.reference import Array, Reference
from tests.cpu.kernels.random_tensors import Folder, random_packed, vector


def config(**changes: Any) -> ModelConfig:
    """Return a small config; `changes` are named as in Hugging Face's config.json."""
    values = {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 301,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return parse_config(values | changes)


def dense(values: NDArray[np.float32]) -> PackedTensor:
    """Return a matrix in the f32 format."""
    rows, columns = values.shape
    padded = np.zeros((-(-rows // 16) * 16, columns), np.float32)
    padded[:rows] = values
    tiled = np.ascontiguousarray(padded.reshape(-1, 16, columns).transpose(0, 2, 1))
    return PackedTensor("f32", (rows, columns), 0, {"values": tiled})


def random_folder(model: ModelConfig, seed: int = 0) -> Folder:
    """Return random dense weights, as large as those of a trained model."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(model).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            tensors[name] = vector(values if name.endswith("bias") else (1 + 0.1 * values).astype(np.float32))
        else:
            tensors[name] = dense((values / np.sqrt(shape[1])).astype(np.float32))
    return Folder(model, **tensors)


def random_quantised_folder(model: ModelConfig, kind: tuple[str, int, bool], seed: int = 0) -> Folder:
    """Return `random_folder` with matrices of random codes of a `random_tensors.KINDS`."""
    folder = random_folder(model, seed)
    rng = np.random.default_rng(seed + 1)
    for name, packed in list(folder._tensors.items()):
        if len(packed.shape) == 2:
            quantised = random_packed(kind, *packed.shape, rng)
            part = "row_scales" if "row_scales" in quantised.parts else "scales"
            quantised.parts[part] *= quantised.parts[part].dtype.type(1e-4 if part == "row_scales" else 0.02)
            folder._tensors[name] = quantised
    return folder


def quantised(folder: Folder, name: str) -> Folder:
    """Return a model whose matrices are quantised to the format `name`, in groups of 32."""
    packed = {key: folder.tensor(key) for key in folder._tensors}
    matrices = {key: quantise(name, dequantise(each), 32)[0] for key, each in packed.items() if len(each.shape) == 2}
    return Folder(folder.config, **packed | matrices)


def reference(folder: Folder, activations: int = 8) -> Reference:
    """Return the decoder to compare a device with; it rounds activations to 8 or 16 bits where weights are integers."""

    def weights(name: str) -> Array:
        packed = folder.tensor(name)
        return (packed.parts["values"] if packed.format == "vector" else dequantise(packed)).astype(np.float64)

    def rounding(x: Array, name: str) -> Array:
        dense = folder.tensor(name).format in ("f32", "bf16")
        return x if dense else dequantised_activations(x.astype(np.float32), TERMS[activations])

    return Reference(folder.config, weights, rounding)
