"""Write tiny models as GGUF files, with blocks of any type and a tokenizer, and read their values with gguf-py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.gguf_files import merge_lines, token_table
from quant.families import expected_tensors, parse_config
from quant.sources.gguf.block_types import BLOCK_TYPES, BlockType
from quant.sources.gguf.names import gguf_name
from quant.sources.gguf.reader import GgufFile
from tests.quant.checkpoints import CHAT_TEMPLATE, CONFIG, random_tensors, write_tokenizer
from tests.quant.sources.gguf.files import Stored, Typed, gguf_file

Array = NDArray[Any]
TYPES = {kind.name: kind for kind in BLOCK_TYPES.values()}
HALVES = {
    **dict.fromkeys(("q4_0", "q5_0", "q8_0", "iq4_nl", "iq4_xs"), (0,)),
    **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2)),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q6_k": (208,),
}
"""Byte positions of the f16 scales and minimums in a block."""
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
"""Sizes whose rows are super-blocks."""


def random_blocks(kind: BlockType, rows: int, columns: int, seed: int, scale: float = 1.0) -> Array:
    """Return blocks of random bits, (rows, blocks, bytes), with normal scales and minimums of a standard deviation."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows, columns // kind.weights, kind.block_bytes), np.uint8)
    if kind.weights == 1:
        values = scale * random.standard_normal((rows, columns)).astype(np.float32)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind.number)).view(np.uint8).reshape(blocks.shape)
    for position in HALVES[kind.name]:
        scales = (scale * random.standard_normal(blocks.shape[:2])).astype("<f2")
        blocks[..., position : position + 2] = scales.view(np.uint8).reshape(*blocks.shape[:2], 2)
    return blocks


def reference(kind: BlockType, blocks: Array) -> Array:
    """Return the values of blocks according to gguf-py, (rows, K) f32."""
    rows = blocks.reshape(blocks.shape[0], -1)
    data = rows.view(np.float32) if kind.name == "f32" else rows
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number)))


def values_in(file: Path) -> dict[str, Array]:
    """Return the values of all tensors by their GGUF names, read by gguf-py."""
    values = {}
    for tensor in gguf.GGUFReader(file).tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values[tensor.name] = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).reshape(shape)
    return values


def model_tensors(
    config: Mapping[str, Any], kind_of: Callable[[str], str], seed: int = 0, scale: float = 0.01
) -> dict[str, Stored]:
    """Return tensors by their GGUF names. Vectors are f32.

    Args:
        config: values of config.json.
        kind_of: returns the type of a matrix from its Hugging Face name.
        seed: seed of the values.
        scale: standard deviation of the scales.
    """
    tensors = {}
    vectors = random_tensors(parse_config(config), seed=seed)
    for number, (name, shape) in enumerate(expected_tensors(parse_config(config)).items()):
        kind = TYPES["f32" if len(shape) == 1 else kind_of(name)]
        data = vectors[name] if len(shape) == 1 else random_blocks(kind, *shape, seed=seed + number, scale=scale)
        tensors[gguf_name(name) or ""] = Stored(kind.number, shape, data.tobytes())
    return tensors


def tokenizer_metadata(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Return the keys of the tests' tokenizer, whose files are written into `folder`."""
    write_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens, types = token_table(tokenizer, vocab_size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Typed(5, types),
        "tokenizer.ggml.merges": merge_lines(tokenizer),
        "tokenizer.ggml.eos_token_id": CONFIG["eos_token_id"],
        "tokenizer.ggml.bos_token_id": CONFIG["bos_token_id"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def model_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that llama.cpp's converter writes for a config.json, without those of the tokenizer."""
    kind = config["model_type"]
    metadata = {
        "general.architecture": kind,
        "general.type": "model",
        "general.quantization_version": 2,
        f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.context_length": config["max_position_embeddings"],
        f"{kind}.embedding_length": config["hidden_size"],
        f"{kind}.feed_forward_length": config["intermediate_size"],
        f"{kind}.attention.head_count": config["num_attention_heads"],
        f"{kind}.attention.head_count_kv": config["num_key_value_heads"],
        f"{kind}.rope.freq_base": float(config["rope_theta"]),
        f"{kind}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    if "head_dim" in config:
        metadata |= {f"{kind}.attention.{name}_length": config["head_dim"] for name in ("key", "value")}
    return metadata


def write_model(
    file: Path,
    kind_of: Callable[[str], str] = lambda name: "q4_0",
    *,
    config_overrides: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Stored | None] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a model of random blocks and return the values of its config.json.

    Args:
        file: file to write. The files of its tokenizer are written beside it, into the folder `tokenizer`.
        kind_of: returns the type of a matrix from its Hugging Face name.
        config_overrides: values of config.json that differ from those of `CONFIG` and `SIZES`.
        metadata: keys to set. The value `...` removes a key.
        tensors: tensors to set by their GGUF names. None removes a tensor.
        seed: seed of the values.
    """
    folder = file.parent / "tokenizer"
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, **SIZES, **(config_overrides or {})}
    pairs = {**model_metadata(config), **tokenizer_metadata(folder, config["vocab_size"]), **(metadata or {})}
    stored: dict[str, Stored | None] = {**model_tensors(config, kind_of, seed), **(tensors or {})}
    present = {name: tensor for name, tensor in stored.items() if tensor is not None}
    file.write_bytes(gguf_file({key: value for key, value in pairs.items() if value is not ...}, present))
    return config


def content_of(file: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return the metadata and the tensors of an intact file, as `gguf_file` takes them."""
    opened = GgufFile.open(file)
    metadata = {key: Typed(5, value) if key.endswith("token_type") else value for key, value in opened.metadata.items()}
    tensors = {}
    for name, tensor in opened.tensors.items():
        rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
        tensors[name] = Stored(tensor.type.number, tensor.shape, opened.blocks(name, 0, rows).tobytes())
    return metadata, tensors


def split_files(
    metadata: Mapping[Any, Any],
    tensors: Mapping[Any, Stored],
    parts: int,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
) -> dict[str, bytes]:
    """Return the parts of a model by the names of their files.

    Args:
        metadata: keys of the model.
        tensors: its tensors.
        parts: number of parts.
        changes: keys to set, by the number of the part from 0.
    """
    files = {}
    for number, places in enumerate(np.array_split(np.arange(len(tensors)), parts)):
        own: dict[Any, Any] = {} if number else dict(metadata)
        own |= {"split.no": Typed(2, number), "split.count": Typed(2, parts)}
        own |= {"split.tensors.count": Typed(5, len(tensors)), **(changes or {}).get(number, {})}
        named = list(tensors.items())
        files[f"split-{number + 1:05d}-of-{parts:05d}.gguf"] = gguf_file(own, [named[place] for place in places])
    return files


def write_split(folder: Path, source: Path, parts: int, changes: Mapping[int, Mapping[str, Any]] | None = None) -> Path:
    """Write a GGUF file as a split model and return its first part. Arguments are those of `split_files`."""
    files = split_files(*content_of(source), parts, changes)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / next(iter(files))
