"""The mathematics of the decoder on one page: plain NumPy in float64, without a cache, a device or a weight format.

Every device computes the same, only faster. Read this page first, and compare a device with it.

Shapes: tokens T, hidden_size H, intermediate_size I, vocab_size V, num_heads A, num_kv_heads K, head_dim D. Matrices
are (out, in), and all names are Hugging Face's.

Sources: Vaswani et al. 2017 (attention), Zhang and Sennrich 2019 (RMSNorm), Shazeer 2020 (SwiGLU), Su et al. 2021
(RoPE), Ainslie et al. 2023 (grouped-query attention), Yang et al. 2024 (Qwen2: biases of q, k and v), Yang et al. 2025
(Qwen3: RMSNorm of each head of q and k). A model has the biases and norms that its family lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quant.families import expected_tensors
from qwchat.model.rope import rope_tables

if TYPE_CHECKING:
    from quant.model_config import ModelConfig

Array = npt.NDArray[np.float64]
LoadTensor = Callable[[str], Array]
"""(tensor name) -> its values in float64."""
Rounding = Callable[[Array, str], Array]
"""(input of a product (T, in), name of the matrix) -> the input as a device sees it."""


def exact(x: Array, _name: str) -> Array:
    """Return `x` unchanged: no activation is rounded."""
    return x


class Reference:
    """A decoder that evaluates the whole sequence at once.

    Args:
        config: the model's.
        weights: returns a tensor by name; a tied head is read as the embedding.
        rounding: rounds activations before a product, as the device to compare with does.
    """

    def __init__(self, config: ModelConfig, weights: LoadTensor, rounding: Rounding = exact) -> None:
        self.config, self.weights, self.rounding = config, weights, rounding
        self.names = frozenset(expected_tensors(config))

    def logits(self, ids: Sequence[int]) -> Array:
        """Return the logits (T, V) after each of the token ids `ids` (T)."""
        x = self.embed(ids)  # (T, H), the residual
        for layer in range(self.config.num_layers):
            x = self.layer(x, layer)
        return self.head(x)

    def embed(self, ids: Sequence[int]) -> Array:
        """Return the embeddings (T, H) of the token ids `ids` (T)."""
        return self.weights("model.embed_tokens.weight")[np.asarray(ids, np.int64)]

    def layer(self, x: Array, layer: int) -> Array:
        """Return the residual `x` (T, H), at the positions from 0 on, after layer number `layer`."""
        prefix = f"model.layers.{layer}"
        x = x + self.attention(self.norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn")
        return x + self.swiglu(self.norm(x, f"{prefix}.post_attention_layernorm"), f"{prefix}.mlp")

    def head(self, x: Array) -> Array:
        """Return the logits (T, V) of the residual `x` (T, H)."""
        name = "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return self.product(self.norm(x, "model.norm"), name)

    def norm(self, x: Array, name: str) -> Array:
        """Return x / sqrt(mean(x^2) + eps) * weight for each row of `x` (..., features): RMSNorm, eq. 4."""
        mean_square = np.square(x).mean(-1, keepdims=True)  # (..., 1)
        normed: Array = x / np.sqrt(mean_square + self.config.rms_norm_eps)
        return normed * self.weights(f"{name}.weight")

    def product(self, x: Array, name: str) -> Array:
        """Return x W^T (T, out), plus the bias (out) if the family has one, for `x` (T, in)."""
        y: Array = self.rounding(x, f"{name}.weight") @ self.weights(f"{name}.weight").T
        return y + self.weights(f"{name}.bias") if f"{name}.bias" in self.names else y

    def heads(self, x: Array, prefix: str, name: str, count: int) -> Array:
        """Return the queries, keys or values (T, count, D) of `x` (T, H), normed in families that do so."""
        y = self.product(x, f"{prefix}.{name}_proj").reshape(len(x), count, self.config.head_dim)
        return self.norm(y, f"{prefix}.{name}_norm") if f"{prefix}.{name}_norm.weight" in self.names else y

    def attention(self, x: Array, prefix: str) -> Array:
        """Return softmax(q k^T / sqrt(D)) v of each head, through o_proj, (T, H), for `x` (T, H).

        A token sees itself and all tokens before it. Each KV head serves A/K consecutive query heads.
        """
        tokens, config = len(x), self.config
        q = self.heads(x, prefix, "q", config.num_heads)  # (T, A, D)
        k, v = (self.heads(x, prefix, name, config.num_kv_heads) for name in "kv")  # (T, K, D)
        cos, sin = (table.astype(np.float64)[:, None] for table in rope_tables(config, 0, tokens))  # (T, 1, D/2)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        k, v = (np.repeat(each, config.num_heads // config.num_kv_heads, axis=1) for each in (k, v))  # (T, A, D)
        scores = np.einsum("qad,kad->aqk", q, k) / np.sqrt(config.head_dim)  # (A, T, T)
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("aqk,kad->qad", weights, v)  # (T, A, D)
        return self.product(mixed.reshape(tokens, -1), f"{prefix}.o_proj")

    def swiglu(self, x: Array, prefix: str) -> Array:
        """Return W_down (silu(W_gate x) * W_up x), (T, H), for `x` (T, H); silu(z) = z / (1 + exp(-z))."""
        gate, up = self.product(x, f"{prefix}.gate_proj"), self.product(x, f"{prefix}.up_proj")  # (T, I)
        return self.product(gate / (1 + np.exp(-gate)) * up, f"{prefix}.down_proj")


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Return `x` (T, heads, D) with each pair of features (i, i + D/2) rotated by the angle of its position.

    `cos` and `sin` are (T, 1, D/2), from `rope_tables`.
    """
    low, high = np.split(x, 2, axis=-1)  # (T, heads, D/2)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
