"""Write GGUF files of a Qwen2 or Qwen3 checkpoint: bf16 with the `gguf` package, then quantised by llama.cpp itself.

Types that only ik_llama.cpp has are quantised by its own program. Needs the extra `bench`. Tensors are streamed from
the mapped checkpoint, so a 7B model needs little memory. The bf16 file is deleted when all requested files are made.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPE_NORMAL, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED = 1, 3, 4, 5  # gguf.TokenType
ALIGNMENT = 32
IK_KINDS = ("IQ4_KS",)


def checkpoint_tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """Yield the name and the mapped bf16 bits of every tensor. Raises ValueError for any other dtype."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise ValueError(f"{path}: {name} is {entry['dtype']}, expected BF16")
            start = 8 + length + entry["data_offsets"][0]
            yield name, np.memmap(path, np.dtype("<u2"), "r", start, tuple(entry["shape"]))


def token_table(tokenizer: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Return tokens and token types by id; ids that tokenizer.json does not name are unused.

    Args:
        tokenizer: values of tokenizer.json.
        vocab_size: number of ids.
    """
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [TYPE_UNUSED] * vocab_size
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = text, TYPE_NORMAL
    for added in tokenizer.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TYPE_CONTROL if added["special"] else TYPE_USER_DEFINED
    return tokens, types


def merge_lines(tokenizer: dict[str, Any]) -> list[str]:
    """Return the merges as lines of two symbols; tokenizer.json holds such lines or pairs."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]


def gguf_values(tensor: NDArray[np.uint16]) -> NDArray[np.uint16] | NDArray[np.float32]:
    """Return the values to write: matrices unchanged, vectors (norms, biases) as f32, as llama.cpp requires."""
    if tensor.ndim > 1:
        return tensor
    return (tensor.astype(np.uint32) << 16).view(np.float32)


def add_metadata(writer: Any, checkpoint: Path) -> dict[str, Any]:
    """Add sizes, tokenizer and chat template of a checkpoint to a `gguf.GGUFWriter`; return its config.json."""
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    tokens, types = token_table(tokenizer, config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merge_lines(tokenizer))
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    tokenizer_config = checkpoint / "tokenizer_config.json"
    if tokenizer_config.exists() and (template := json.loads(tokenizer_config.read_text()).get("chat_template")):
        writer.add_chat_template(template)
    return config


def write_bf16_gguf(checkpoint: Path, destination: Path) -> None:
    """Write `checkpoint` (config.json, tokenizer.json, bf16 safetensors) as one GGUF file."""
    import gguf

    family = json.loads((checkpoint / "config.json").read_text())["model_type"]
    writer = gguf.GGUFWriter(destination, family)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    config = add_metadata(writer, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config["num_hidden_layers"])
    tensors = list(checkpoint_tensors(checkpoint))
    for name, tensor in tensors:
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ValueError(f"{name}: GGUF has no name for it")
        size = tensor.size * (2 if tensor.ndim > 1 else 4)
        kind = gguf.GGMLQuantizationType.BF16 if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(known, tensor.shape, tensor.dtype, size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in tensors:
        writer.write_tensor_data(gguf_values(tensor))
    writer.close()


def quantise_gguf(
    source: Path,
    destination: Path,
    kind: str,
    threads: int,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Quantise a GGUF file with llama.cpp.

    Args:
        source: bf16 file.
        destination: file to write.
        kind: type, such as "Q4_K_M".
        threads: number of threads.
        importance: mean square of each input column by the name of a matrix (`llama-quantize --imatrix`).

    Raises:
        RuntimeError: llama.cpp refuses.
    """
    import llama_cpp

    from benchmarks.llama_engine import start_llama

    start_llama()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = threads
    entries = llama_importance(importance or {})
    if importance:
        params.imatrix = entries
    unfinished = destination.with_suffix(".part")
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(unfinished), ctypes.byref(params))
    if status:
        raise RuntimeError(f"llama.cpp could not quantise {source} to {kind}: status {status}")
    unfinished.replace(destination)


def llama_importance(importance: Mapping[str, NDArray[np.float32]]) -> Any:
    """Return an importance matrix as an array of llama.cpp's structures, which ends with one without a name."""
    import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        data = (ctypes.c_float * values.size).from_buffer_copy(np.ascontiguousarray(values, np.float32))
        entry.name, entry.size = name.encode(), values.size
        entry.data = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))  # Keeps `data` alive.
    return entries


def quantise_with_ik(source: Path, destination: Path, kind: str, python: Path) -> None:
    """Quantise `source` with ik_llama.cpp, which `python` has. Raises RuntimeError if it refuses."""
    unfinished = destination.with_suffix(".part")
    command = [str(python), "-m", "benchmarks.ik_engine", "quantise", str(source), str(unfinished), kind]
    ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if ran.returncode:
        last = ran.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"ik_llama.cpp could not quantise {source} to {kind}: {last}")
    unfinished.replace(destination)


def make_gguf(
    checkpoint: Path, folder: Path, kinds: Sequence[str], threads: int, ik_python: Path | None = None
) -> dict[str, Path]:
    """Make a GGUF file in `folder` for each kind, and return the files by kind; existing files are kept.

    Args:
        checkpoint: folder with config.json, tokenizer.json and bf16 safetensors.
        folder: folder of the files.
        kinds: types such as Q4_K_M.
        threads: threads of llama.cpp.
        ik_python: Python that has ik-llama-cpp-python; needed for kinds in `IK_KINDS`.
    """
    paths = {kind: folder / f"{checkpoint.name}-{kind}.gguf" for kind in kinds}
    missing = [kind for kind, path in paths.items() if not path.exists()]
    if not missing:
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    between = folder / f"{checkpoint.name}-bf16.gguf"
    try:
        write_bf16_gguf(checkpoint, between)
        for kind in missing:
            if kind in IK_KINDS and ik_python is not None:
                quantise_with_ik(between, paths[kind], kind, ik_python)
            else:
                quantise_gguf(between, paths[kind], kind, threads)
    finally:
        between.unlink(missing_ok=True)
    return paths
