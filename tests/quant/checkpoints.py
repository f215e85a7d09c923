"""Tiny random Qwen2 checkpoints in Hugging Face form, for tests: config, weights, tokenizer, template.

Call `make_checkpoint`. The weights are random; the tokenizer is the Qwen2 pipeline with 256 byte tokens, a few merges
and the ChatML tokens. Everything is determined by the seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quant.families import expected_tensors, parse_config
from quant.model_config import ModelConfig

Tensors = dict[str, np.ndarray]

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 280,
    "eos_token_id": 282,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 320,
}
"""The default tiny model. Ids 283..319 are padding rows, as in real vocabularies."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = ["h e", "l l", "he ll", "hell o", "t h", "th e", "i n", "a n", "o u", "e r", "Ġ the", "Ġ a"]
_MERGES = [*_MERGES, "r e", "o n", "a t", "e n", "i s", "o r", "in g", "an d", "Ġ t", "Ġ s", "e s", "s t"]
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def make_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    config_overrides: Mapping[str, Any] | None = None,
    dtype: str = "bf16",
    shards: int = 1,
    k_bias_norm: float | None = None,
    edit: Callable[[Tensors], object] | None = None,
) -> Path:
    """Write a random checkpoint and return its folder.

    Args:
        folder: folder to write; created if missing.
        seed: seed of the weights.
        config_overrides: keys of config.json to set. The value `...` removes a key.
        dtype: storage type of the tensors: "bf16", "f16" or "f32".
        shards: 1 writes model.safetensors; more write that many files and an index.
        k_bias_norm: Euclidean norm of every k_proj bias (outliers of Qwen2 reach 900).
        edit: called with the float32 tensors before they are written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = dict(CONFIG)
    for key, value in (config_overrides or {}).items():
        if value is ...:
            values.pop(key, None)
        else:
            values[key] = value
    write_json(folder / "config.json", values)
    write_tokenizer(folder)
    tensors = random_tensors(parse_config(values), seed=seed, k_bias_norm=k_bias_norm)
    if edit is not None:
        edit(tensors)
    write_weights(folder, tensors, dtype=dtype, shards=shards)
    return folder


def random_tensors(config: ModelConfig, *, seed: int = 0, k_bias_norm: float | None = None) -> Tensors:
    """Return every tensor as float32: matrices of std 1/sqrt(columns), norms near 1, biases of std 0.1."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in expected_tensors(config).items():
        values = random.standard_normal(shape).astype(np.float32)
        if name.endswith("norm.weight"):
            values = 1 + np.float32(0.1) * values
        elif name.endswith(".bias"):
            values *= np.float32(0.1)
            if k_bias_norm is not None and "k_proj" in name:
                values *= np.float32(k_bias_norm / np.linalg.norm(values))
        elif "embed_tokens" not in name or config.tie_word_embeddings:
            values /= np.float32(np.sqrt(shape[-1]))
        tensors[name] = values
    return tensors


def encode(values: np.ndarray, dtype: str) -> tuple[str, tuple[int, ...], bytes]:
    """Return (safetensors dtype, shape, bytes) of float32 values stored as `dtype`. bf16 rounds to nearest even."""
    if dtype == "bf16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        quiet = np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype("<u2")
        return "BF16", values.shape, quiet.tobytes()
    if dtype == "f16":
        return "F16", values.shape, values.astype("<f2").tobytes()
    return "F32", values.shape, values.astype("<f4").tobytes()


def write_safetensors(path: Path, entries: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write a safetensors file: u64 header length, JSON header padded to 8 bytes with spaces, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (kind, shape, data) in entries.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in entries.values()))


def write_weights(folder: Path, tensors: Tensors, *, dtype: str = "bf16", shards: int = 1) -> None:
    """Write model.safetensors, or `shards` files and their index, in the order of `tensors`."""
    entries = {name: encode(values, dtype) for name, values in tensors.items()}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", entries)
        return
    names = list(entries)
    weight_map: dict[str, str] = {}
    for number, chunk in enumerate(np.array_split(np.arange(len(names)), shards), start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        part = {names[index]: entries[names[index]] for index in chunk}
        write_safetensors(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(len(data) for _, _, data in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json (Qwen2 pipeline), tokenizer_config.json (with template) and generation_config.json."""
    merges = [merge.split(" ") for merge in _MERGES]
    symbols = [*_byte_symbols(), *("".join(merge) for merge in merges)]
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = len(vocab)
    added = [{"id": first + number, "content": text, **plain} for number, text in enumerate(SPECIAL_TOKENS)]
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    write_json(folder / "tokenizer.json", tokenizer)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + number): {"content": t, **plain} for number, t in enumerate(SPECIAL_TOKENS)
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 256,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)
    defaults = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    ids = {"bos_token_id": first, "pad_token_id": first, "eos_token_id": [first + 2, first]}
    write_json(folder / "generation_config.json", {**ids, **defaults})


def _byte_symbols() -> list[str]:
    """Return the characters of GPT-2 for the 256 bytes, in the order of the Qwen2 vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(256 + number) for number in range(256 - len(visible))]
