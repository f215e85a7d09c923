"""The launches of a decode pass: 1 to 8 tokens through the embedding, the layers and the head.

Each layer is five launches: norm, q, k and v; attention; o_proj; norm, gate, up and SiLU; down_proj. Whatever changes
from pass to pass is in the buffers `step` and `ids`, so that the launches can be captured in a graph. On devices that
have programmatic dependent launch a kernel may begin before its predecessor has ended, and waits for it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from quant.formats.format import tile_count
from quant.model_config import ModelConfig
from qwchat.cuda import gemv_shapes
from qwchat.cuda.device import OpenGpu
from qwchat.cuda.kv_cache import CudaCache
from qwchat.cuda.launch import Launch, prepare
from qwchat.cuda.modules import Modules
from qwchat.cuda.weights import CudaWeights, DeviceMatrix
from qwchat.cuda.workspace import CudaWorkspace
from qwchat.model.gpu_memory import ATTENTION_SPLITS, CANDIDATE_PART, DECODE_ROWS, TOP_CANDIDATES, DevicePart

_WARPS = 8  # of the matrix kernels
_ROW_TILE = 16  # query rows that an attention block takes
_GROUP = 32
_EMBEDDING = "model.embed_tokens.weight"
_ADDED = ("self_attn.o_proj", "mlp.down_proj")
"""Matrices whose product is added to the residual stream."""
_PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


@dataclass(frozen=True)
class StageParts:
    """What the launches of a model's passes are built from.

    Attributes:
        gpu: the device.
        modules: where kernels are loaded.
        config: the model's shapes.
        weights: the model's, on the device.
        space: buffers.
        kind: kind of the KV caches.
        layers: the layers that are loaded.
    """

    gpu: OpenGpu
    modules: Modules
    config: ModelConfig
    weights: CudaWeights
    space: CudaWorkspace
    kind: str
    layers: range


class DecodeStages:
    """Builds the launches of decode passes.

    Args:
        parts: what launches are built from.
    """

    def __init__(self, parts: StageParts) -> None:
        gpu, modules, config = parts.gpu, parts.modules, parts.config
        self._gpu, self._modules, self._config = gpu, modules, config
        self._weights, self._space, self._kind, self._layers = parts.weights, parts.space, parts.kind, parts.layers
        self._head_name = _EMBEDDING if config.tie_word_embeddings else "lm_head.weight"
        self._prepare = partial(prepare, modules, overlap=gpu.target >= 90)
        processors = gpu.gpu.multiprocessors
        self._splits = max(1, min(processors // config.num_kv_heads, ATTENTION_SPLITS))

    def needed(self, part: DevicePart) -> Iterator[tuple[str, str]]:
        """Yield tensors of a part of the model, each with a kernel that it needs."""
        if part.embedding:
            yield _EMBEDDING, f"embed_{self._weights.matrix(_EMBEDDING).format}"
        names = [f"model.layers.{layer}.{module}.weight" for layer in part.layers for module in _PROJECTIONS]
        for name in names + ([self._head_name] if part.head else []):
            matrix = self._weights.matrix(name)
            yield matrix.name, f"norm_gemv_{matrix.format}_r1"

    def embed(self, tokens: int) -> Iterator[Launch]:
        """Yield the launch that writes the residual stream from `ids`."""
        matrix, space = self._weights.matrix(_EMBEDDING), self._space
        parameters = matrix.parameters | {"ids": space["ids"], "residual": space["residual"], "rows": tokens}
        yield self._prepare(f"embed_{matrix.format}", tokens, parameters)

    def layer(self, layer: int, tokens: int, cache: CudaCache) -> Iterator[Launch]:
        """Yield the launches of a layer."""
        o_proj, down_proj = (self._weights.matrix(f"model.layers.{layer}.{name}.weight") for name in _ADDED)
        yield from self._qkv(layer, tokens)
        yield self._attention(layer, tokens, cache, o_proj)
        yield self._project(o_proj, tokens)
        yield from self._gate_up(layer, tokens, down_proj)
        yield self._project(down_proj, tokens)

    def head(self, rows: int) -> Iterator[Launch]:
        """Yield the launch that computes `rows` rows of logits, from row `step[2]` of the residual stream on."""
        matrix, space = self._weights.matrix(self._head_name), self._space
        stride = tile_count(self._config.vocab_size) * 16
        yield self._norm_gemv(matrix, "model.norm.weight", rows, space["logits"], stride, first=space["step"] + 8)

    def candidates(self, rows: int) -> Launch:
        """Return the launch that finds the largest logits of `rows` rows."""
        space, vocab = self._space, self._config.vocab_size
        parts = -(-vocab // CANDIDATE_PART)
        scratch = {name: space[f"candidate_{name}"] for name in ("lists", "sums", "arrivals", "values", "ids")}
        buffers = {name: space[name] for name in ("step", "logits", "summaries")}
        sizes = {"stride": tile_count(vocab) * 16, "vocab": vocab, "parts": parts, "k": TOP_CANDIDATES}
        return self._prepare("candidates", rows * parts, {"allowed": 0, "words": 0, **scratch, **buffers, **sizes})

    def _qkv(self, layer: int, tokens: int) -> Iterator[Launch]:
        prefix = f"model.layers.{layer}"
        modules = [f"{prefix}.self_attn.{each}_proj" for each in "qkv"]
        matrices = self._weights.matrices([f"{module}.weight" for module in modules])
        bias = self._weights.vector(f"{modules[0]}.bias")
        width, row = sum(matrix.rows for matrix in matrices), 0
        for matrix in matrices:
            out, own_bias = self._space["qkv"] + 4 * row, bias + 4 * row if bias else 0
            norm = f"{prefix}.input_layernorm.weight"
            yield self._norm_gemv(matrix, norm, tokens, out, width, bias=own_bias)
            row += matrix.rows

    def _norm_gemv(
        self, matrix: DeviceMatrix, norm: str, tokens: int, out: int, stride: int, *, bias: int = 0, first: int = 0
    ) -> Launch:
        """Return the launch of `out = RMSNorm(residual) @ W.T + bias`; `first`: address of its first row's number."""
        output = {"first": first, "bias": bias, "out": out, "out_stride": stride}
        shared_bytes = self._norm_bytes(matrix, tokens)
        return self._product("norm_gemv", matrix, tokens, self._norm(norm) | output, shared_bytes)

    def _norm(self, name: str) -> dict[str, float]:
        """Return the parameters of the RMSNorm in front of a product."""
        address = self._weights.vector(name)
        return {"residual": self._space["residual"], "norm": address, "epsilon": self._config.rms_norm_eps}

    @staticmethod
    def _norm_bytes(matrix: DeviceMatrix, tokens: int) -> int:
        """Return the dynamic shared memory of a kernel that normalises, and may quantise, its input."""
        return 0 if matrix.is_dense else gemv_shapes.norm_bytes(tokens, matrix.columns)

    def _attention(self, layer: int, tokens: int, cache: CudaCache, o_proj: DeviceMatrix) -> Launch:
        config, space = self._config, self._space
        prefix = f"model.layers.{layer}.self_attn"
        row_tiles = -(-tokens * (config.num_heads // config.num_kv_heads) // _ROW_TILE)
        offsets = space["key_offsets"] + self._layers.index(layer) * space.row_bytes("key_offsets")
        buffers = {name: space[name] for name in ("step", "qkv", "cos", "sin", "partials", "arrivals")}
        norms = {name: self._weights.vector(f"{prefix}.{name}.weight") for name in ("q_norm", "k_norm")}
        parameters: dict[str, float] = {
            "key_offset": offsets,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "splits": self._splits,
            "capacity": cache.capacity,
            "epsilon": config.rms_norm_eps,
        }
        return self._prepare(
            f"attend_{self._kind}_d{config.head_dim}",
            row_tiles * config.num_kv_heads * self._splits,
            parameters | buffers | norms | cache.layer(layer).parameters | self._output(o_proj),
        )

    def _output(self, matrix: DeviceMatrix) -> dict[str, float]:
        """Return where a stage writes the input of `matrix`: quantised, or as floats."""
        if matrix.is_dense:
            return {"x8": 0, "xs": 0, "floats": self._floats}
        return {"x8": self._space["x8"], "xs": self._space["xs"], "floats": 0}

    @property
    def _floats(self) -> int:
        """Address of float activations (DECODE_ROWS, intermediate or queries), behind the rows of `gate_up` in use."""
        return self._space["gate_up"] + DECODE_ROWS * self._space.row_bytes("gate_up")

    def _project(self, matrix: DeviceMatrix, tokens: int) -> Launch:
        """Return the launch that adds a product to the residual stream."""
        space = self._space
        x = {"x": self._floats} if matrix.is_dense else {"x8": space["x8"], "xs": space["xs"]}
        output = {"bias": 0, "out": space["residual"], "out_stride": self._config.hidden_size, "accumulate": 1}
        return self._product("gemv", matrix, tokens, {**x, **output})

    def _gate_up(self, layer: int, tokens: int, down_proj: DeviceMatrix) -> Iterator[Launch]:
        prefix, space = f"model.layers.{layer}", self._space
        names = [f"{prefix}.mlp.{each}_proj.weight" for each in ("gate", "up")]
        matrices, norm = self._weights.matrices(names), f"{prefix}.post_attention_layernorm.weight"
        if len(matrices) == 1:
            parameters = self._norm(norm) | {"bias": 0} | self._output(down_proj)
            shared_bytes = self._norm_bytes(matrices[0], tokens)
            yield self._product("norm_gate_up", matrices[0], tokens, parameters, shared_bytes)
            return
        columns = self._config.intermediate_size
        gate, up = space["gate_up"], space["gate_up"] + 4 * columns
        for matrix, out in zip(matrices, (gate, up), strict=True):
            yield self._norm_gemv(matrix, norm, tokens, out, 2 * columns)
        blocks = -(-tokens * columns // (_GROUP * _WARPS))
        parameters = {"gate": gate, "up": up, "stride": 2 * columns, "rows": tokens, "columns": columns}
        yield self._prepare("silu_quantise", blocks, parameters | self._output(down_proj))

    def _product(
        self, stage: str, matrix: DeviceMatrix, tokens: int, parameters: dict[str, float], shared_bytes: int = 0
    ) -> Launch:
        """Return the launch of a kernel that reads a matrix once."""
        name = f"{stage}_{matrix.format}_r{gemv_shapes.variant(tokens)}"
        resident = self._gpu.gpu.multiprocessors * self._modules.kernel(name).record.blocks_per_sm
        split = gemv_shapes.split(matrix.tiles, gate_up=stage == "norm_gate_up")
        units = gemv_shapes.units(matrix.tiles, split, tokens, dense=matrix.is_dense)
        parameters = parameters | matrix.parameters | {"rows": tokens, "split": split}
        return self._prepare(name, min(units, resident), parameters, shared_bytes=shared_bytes)
