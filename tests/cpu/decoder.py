"""A Qwen2 decoder in plain float64 NumPy, written from the paper's formulas, and random models to run it on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.config import ModelConfig
from quant.families import expected_tensors, parse_config
from quant.formats import PackedTensor, dequantise
from qwchat.cpu.kernels.reference import dequantised_activations
from qwchat.model.rope import rope_tables
from tests.cpu.kernels.packed import Folder, vector

Array = NDArray[np.float64]


def config(**changes: Any) -> ModelConfig:
    """A small config; ``changes`` under Hugging Face's keys."""
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
    """A matrix in the f32 format."""
    rows, columns = values.shape
    padded = np.zeros((-(-rows // 16) * 16, columns), np.float32)
    padded[:rows] = values
    tiled = np.ascontiguousarray(padded.reshape(-1, 16, columns).transpose(0, 2, 1))
    return PackedTensor("f32", (rows, columns), 0, {"values": tiled})


def random_folder(model: ModelConfig, seed: int = 0) -> Folder:
    """Random dense weights of a trained model's magnitudes."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(model).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            tensors[name] = vector(values if name.endswith("bias") else (1 + 0.1 * values).astype(np.float32))
        else:
            tensors[name] = dense((values / np.sqrt(shape[1])).astype(np.float32))
    return Folder(model, **tensors)


class Decoder:
    """Logits of a whole sequence at once; activations are quantised where the weights are integers."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.config = folder, folder.config

    def _linear(self, x: Array, name: str, bias: bool = False) -> Array:
        packed = self.folder.tensor(f"{name}.weight")
        seen = x if packed.format in ("f32", "bf16") else dequantised_activations(x.astype(np.float32))
        result: Array = seen.astype(np.float64) @ dequantise(packed).astype(np.float64).T
        return result + self._vector(f"{name}.bias") if bias else result

    def _vector(self, name: str) -> Array:
        return self.folder.tensor(name).parts["values"].astype(np.float64)

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.square(x).mean(-1, keepdims=True) + self.config.rms_norm_eps)
        return x / scale * self._vector(name)

    def _heads(self, x: Array, count: int) -> Array:
        return x.reshape(len(x), count, self.config.head_dim)

    def _attention(self, x: Array, prefix: str) -> Array:
        config, positions = self.config, len(x)
        q = self._heads(self._linear(x, f"{prefix}.q_proj", True), config.num_heads)
        k = self._heads(self._linear(x, f"{prefix}.k_proj", True), config.num_kv_heads)
        v = self._heads(self._linear(x, f"{prefix}.v_proj", True), config.num_kv_heads)
        cos, sin = (np.concatenate([t, t], -1)[:, None] for t in rope_tables(config, 0, positions))
        half = config.head_dim // 2
        q, k = (t * cos + np.concatenate([-t[..., half:], t[..., :half]], -1) * sin for t in (q, k))
        k, v = (np.repeat(t, config.num_heads // config.num_kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(config.head_dim)
        scores = np.where(np.tri(positions, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)
        return self._linear(mixed.reshape(positions, -1), f"{prefix}.o_proj")

    def logits(self, ids: list[int]) -> Array:
        """(tokens, vocab)."""
        x = dequantise(self.folder.tensor("model.embed_tokens.weight"))[ids].astype(np.float64)
        for layer in range(self.config.num_layers):
            prefix = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{prefix}.input_layernorm.weight"), f"{prefix}.self_attn")
            y = self._norm(x, f"{prefix}.post_attention_layernorm.weight")
            gate, up = self._linear(y, f"{prefix}.mlp.gate_proj"), self._linear(y, f"{prefix}.mlp.up_proj")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, f"{prefix}.mlp.down_proj")
        x = self._norm(x, "model.norm.weight")
        return self._linear(x, "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head")
