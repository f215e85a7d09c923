"""The launches of a prefill pass: 9 to CHUNK tokens through the layers, on f16 tensor cores.

Each layer is norm, q, k and v; RoPE and append; attention; o_proj; norm, gate and up; SiLU; down_proj. Activations are
f16 with a factor per token, not 8-bit codes as in decode passes, so logits differ from those of decode passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from qwchat.cuda.kv_cache import CudaCache
from qwchat.cuda.launch import Launch, prepare
from qwchat.cuda.stages import StageParts
from qwchat.cuda.weights import DeviceMatrix

_BLOCK_TILES, _BLOCK_TOKENS = 8, 64  # that a block of a product takes
_ROPE_HEADS = 8  # heads that a block rotates
_ATTENTION_ROWS = 64  # query heads of tokens that a block of attention takes


class PrefillStages:
    """Builds the launches of prefill passes.

    Args:
        parts: what launches are built from.
    """

    def __init__(self, parts: StageParts) -> None:
        self._modules, self._config, self._weights = parts.modules, parts.config, parts.weights
        self._space, self._kind, self._layers = parts.space, parts.kind, parts.layers

    def layer(self, layer: int, tokens: int, cache: CudaCache) -> Iterator[Launch]:
        """Yield the launches of a layer."""
        config, space, prefix = self._config, self._space, f"model.layers.{layer}"
        yield self._norm(f"{prefix}.input_layernorm.weight", tokens)
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        names = [f"{prefix}.self_attn.{each}_proj" for each in "qkv"]
        matrices = self._weights.matrices([f"{name}.weight" for name in names])
        yield from self._products(matrices, tokens, space["qkv"], width, self._weights.vector(f"{names[0]}.bias"))
        yield self._rope(layer, tokens, cache, width)
        yield self._attention(layer, tokens, cache)
        yield self._added(f"{prefix}.self_attn.o_proj.weight", tokens)
        yield self._norm(f"{prefix}.post_attention_layernorm.weight", tokens)
        columns = config.intermediate_size
        matrices = self._weights.matrices([f"{prefix}.mlp.{each}_proj.weight" for each in ("gate", "up")])
        yield from self._products(matrices, tokens, space["gate_up"], 2 * columns)
        both = {"gate": space["gate_up"], "up": space["gate_up"] + 4 * columns, "stride": 2 * columns}
        yield self._launch("silu_f16", tokens, both | {"columns": columns} | self._operand)
        yield self._added(f"{prefix}.mlp.down_proj.weight", tokens)

    @property
    def _operand(self) -> dict[str, float]:
        """Where activations are, for the stage that writes them and for the product that reads them."""
        return {"xh": self._space["xh"], "xf": self._space["xf"]}

    def _launch(self, name: str, grid: int, parameters: dict[str, float]) -> Launch:
        return prepare(self._modules, name, grid, parameters)

    def _norm(self, name: str, tokens: int) -> Launch:
        sizes = {"columns": self._config.hidden_size, "epsilon": self._config.rms_norm_eps}
        addresses = {"residual": self._space["residual"], "weight": self._weights.vector(name)}
        return self._launch("norm_rows_f16", tokens, {**sizes, **addresses, **self._operand})

    def _products(
        self, matrices: list[DeviceMatrix], tokens: int, out: int, stride: int, bias: int = 0
    ) -> Iterator[Launch]:
        """Yield the products with matrices that share their input; their rows are the columns of `out`."""
        row = 0
        for matrix in matrices:
            own_bias = bias + 4 * row if bias else 0
            yield self._product(matrix, tokens, {"out": out + 4 * row, "out_stride": stride, "bias": own_bias})
            row += matrix.rows

    def _added(self, name: str, tokens: int) -> Launch:
        """Return the launch that adds a product to the residual stream."""
        output = {"out": self._space["residual"], "out_stride": self._config.hidden_size, "bias": 0}
        return self._product(self._weights.matrix(name), tokens, output, accumulate=1)

    def _product(self, matrix: DeviceMatrix, tokens: int, output: dict[str, int], accumulate: int = 0) -> Launch:
        name = f"gemm_{matrix.format}"
        blocks = -(-matrix.tiles // _BLOCK_TILES) * -(-tokens // _BLOCK_TOKENS)
        available = matrix.parameters | {"group_shift": matrix.scale_shift, "table": self._space["q4_levels"]}
        taken = self._modules.kernel(name).record.names
        parameters = {part: value for part, value in available.items() if part in taken}
        sizes = {"tokens": tokens, "accumulate": accumulate}
        return self._launch(name, blocks, {**parameters, **output, **sizes, **self._operand})

    def _rope(self, layer: int, tokens: int, cache: CudaCache, width: int) -> Launch:
        config, space, prefix = self._config, self._space, f"model.layers.{layer}.self_attn"
        norms = {name: self._weights.vector(f"{prefix}.{name}.weight") for name in ("q_norm", "k_norm")}
        offsets = space["key_offsets"] + self._layers.index(layer) * space.row_bytes("key_offsets")
        buffers = {name: space[name] for name in ("qkv", "cos", "sin", "step")}
        parameters: dict[str, float] = {
            "key_offset": offsets,
            "queries": self._queries,
            "qkv_stride": width,
            "head_dim": config.head_dim,
            "epsilon": config.rms_norm_eps,
            "query_scale": math.log2(math.e) / math.sqrt(config.head_dim),
        }
        blocks = -(-tokens * (config.num_heads + 2 * config.num_kv_heads) // _ROPE_HEADS)
        parameters |= norms | buffers | self._cache(layer, cache)
        return self._launch(f"rope_append_{self._kind}", blocks, parameters)

    @property
    def _queries(self) -> int:
        """Address of queries (tokens, heads, head_dim) f16: `gate_up`, which is used later in the layer."""
        return self._space["gate_up"]

    def _cache(self, layer: int, cache: CudaCache) -> dict[str, float]:
        """Return the parameters of a layer's cache."""
        addresses = cache.layer(layer).parameters
        if self._kind != "q8":
            addresses = {name: address for name, address in addresses.items() if not name.endswith("_scales")}
        sizes = {"heads": self._config.num_heads, "kv_heads": self._config.num_kv_heads, "capacity": cache.capacity}
        return {**addresses, **sizes}

    def _attention(self, layer: int, tokens: int, cache: CudaCache) -> Launch:
        config = self._config
        group = config.num_heads // config.num_kv_heads
        blocks = config.num_kv_heads * -(-tokens * group // _ATTENTION_ROWS)
        parameters = {"queries": self._queries, "step": self._space["step"]}
        name = f"prefill_attention_{self._kind}_d{config.head_dim}"
        return self._launch(name, blocks, {**parameters, **self._operand, **self._cache(layer, cache)})
