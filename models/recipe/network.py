"""The Qwen2 architecture for training, with the tensor names of the published checkpoints.

Sequences start at position 0 and are padded on the right, so plain causal attention needs no mask: no token attends to
padding. The head runs only at the positions of the loss, which saves a third of the work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shape import Shape


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, each (context, head_dim), in the half-split order of Qwen2."""
    exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angle = torch.outer(torch.arange(shape.context, dtype=torch.float64), shape.rope_theta**-exponent)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to x (batch, heads, tokens, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention, as in the family of the shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        biased = shape.family == "qwen2"
        self.q_proj = nn.Linear(shape.hidden_size, shape.heads * shape.head_dim, bias=biased)
        self.k_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_dim, bias=biased)
        self.v_proj = nn.Linear(shape.hidden_size, shape.kv_heads * shape.head_dim, bias=biased)
        if not biased:
            self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.eps)
            self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.eps)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x (batch, tokens, hidden) to the same shape."""
        batch, tokens, _ = x.shape
        shape = self.shape
        q = self.q_proj(x).view(batch, tokens, shape.heads, shape.head_dim)
        k = self.k_proj(x).view(batch, tokens, shape.kv_heads, shape.head_dim)
        if shape.family == "qwen3":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, shape.kv_heads, shape.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        repeat = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """Gated SiLU block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., hidden) to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x (batch, tokens, hidden) to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm: the part that a checkpoint names `model.`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.eps)


class Mini(nn.Module):
    """The whole model, with its head tied to the embedding unless the shape says otherwise."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        if not shape.tied:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                # Each layer starts as the identity, so that signals of deep layers grow only as the data require.
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(
                    weight,
                    std=0.02 if name.endswith(("embed_tokens.weight", "lm_head.weight")) else shape.hidden_size**-0.5,
                )

    @property
    def head(self) -> Tensor:
        """Return the matrix (vocabulary, hidden) of the logits."""
        return self.model.embed_tokens.weight if self.shape.tied else self.lm_head.weight

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the final hidden states (batch, tokens, hidden) of ids (batch, tokens)."""
        tokens = ids.shape[1]
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def loss(self, ids: Tensor, answered: Tensor) -> Tensor:
        """Return the summed cross-entropy of the tokens marked in `answered` (batch, tokens)."""
        chosen = answered[:, 1:]
        states = self.hidden(ids)[:, :-1][chosen]
        logits = F.linear(states, self.head)
        return F.cross_entropy(logits.float(), ids[:, 1:][chosen], reduction="sum")
