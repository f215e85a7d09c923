"""Records that the compiled forward pass reads: sizes and addresses, under Hugging Face's names.

`CpuDecoder` owns the memory that they point to.
"""

from __future__ import annotations

import numpy as np

from qwchat.cpu.kernels.records import ACTIVATIONS, CACHE, MATRIX, QUERIES

ADDRESS = np.int64

# One decoder layer. Norms are addresses of weights (hidden) f32; biases belong to the matrices.
LAYER = np.dtype(
    [
        ("input_layernorm", ADDRESS),
        ("q_proj", MATRIX),
        ("k_proj", MATRIX),
        ("v_proj", MATRIX),
        ("q_norm", ADDRESS),  # (head_dim) f32, applied to each query head; 0 in a family without it
        ("k_norm", ADDRESS),
        ("o_proj", MATRIX),
        ("post_attention_layernorm", ADDRESS),
        ("gate_proj", MATRIX),
        ("up_proj", MATRIX),
        ("down_proj", MATRIX),
        ("cache", CACHE),
    ]
)

# The model outside its layers, and the work space for one chunk of tokens. Unless stated otherwise, buffers are f32,
# and a row takes its columns rounded up to 16. The fields from `tokens` to `logits_from` are set for every step.
STATE = np.dtype(
    [
        ("embed_tokens", MATRIX),
        ("norm", ADDRESS),
        ("lm_head", MATRIX),
        ("epsilon", np.float32),
        ("query_scale", np.float32),  # 1 / sqrt(head_dim)
        ("tokens", np.int64),  # tokens of this chunk
        ("position", np.int64),  # position of the first one
        ("from_residual", np.int64),  # 1: the pass begins with `residual`; 0: with the embeddings of `token_ids`
        ("first_layer", np.int64),  # number of the first LAYER record to run
        ("last_layer", np.int64),  # one past the last
        ("logits_from", np.int64),  # first token whose logits are wanted; `tokens` skips the head
        ("token_ids", ADDRESS),  # (tokens) i64
        ("cos", ADDRESS),  # (context, head_dim/2) f32
        ("sin", ADDRESS),
        ("residual", ADDRESS),  # (tokens, hidden), the residual stream
        ("normed", ACTIVATIONS),  # (tokens, hidden)
        ("thread_normed", ADDRESS),  # for each thread, NORM_PER_THREAD_TOKENS rows in f32 and packed
        ("thread_normed_bytes", np.int64),
        ("query", ADDRESS),  # (tokens, num_heads * head_dim), before rotation
        ("queries", QUERIES),
        ("key", ADDRESS),  # (tokens, num_kv_heads * head_dim)
        ("value", ADDRESS),
        ("attended", ACTIVATIONS),  # (tokens, num_heads * head_dim)
        ("activated", ACTIVATIONS),  # (tokens, intermediate)
        ("partials", ADDRESS),  # (splits, num_kv_heads, SPLIT_ATTENTION_TOKENS * group, partial_stride) for decode
        ("logits", ADDRESS),  # (tokens from logits_from on, vocab rounded up to 16)
        ("scratch", ADDRESS),  # scratch of each thread
        ("scratch_bytes", np.int64),
    ]
)
