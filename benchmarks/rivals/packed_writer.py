"""Write 4-bit codes as a GPTQ or AWQ checkpoint, in the layouts that `quant.sources.packed` reads.

Layouts: AutoGPTQ `qlinear_cuda_old.py` (version 1, zero points minus 1), AutoAWQ `gemm.py` (order of rows in a word).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.rivals.float_pass import Floats
from benchmarks.rivals.gptq_encoder import Codes

Method = Literal["gptq", "awq"]
PER_WORD = 8
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble of each of the eight rows of an AWQ word."""
COPIED = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json")
CONFIGS: dict[Method, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": False, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"},
}


def words(codes: NDArray[np.uint8], nibbles: tuple[int, ...] = tuple(range(PER_WORD))) -> NDArray[np.int32]:
    """Return codes (rows, 8 n) as words (rows, n): code j of a word is in its nibble `nibbles[j]`."""
    parts = codes.reshape(len(codes), -1, PER_WORD).astype(np.uint32)
    shifted = parts << np.array([4 * nibble for nibble in nibbles], np.uint32)
    return np.bitwise_or.reduce(shifted, axis=2).view(np.int32)


def packed_parts(method: Method, codes: Codes) -> dict[str, NDArray[Any]]:
    """Return the tensors of a module: qweight, qzeros and scales."""
    columns, zeros = np.ascontiguousarray(codes.codes.T), np.ascontiguousarray(codes.zeros.T)  # (K, N), (G, N)
    scales = np.ascontiguousarray(codes.scales.T)
    if method == "awq":
        return {"qweight": words(columns, NIBBLES), "qzeros": words(zeros, NIBBLES), "scales": scales}
    weights = np.ascontiguousarray(words(codes.codes).T)  # Eight columns of a row share a word.
    return {"qweight": weights, "qzeros": words(zeros - np.uint8(1)), "scales": scales}


def write_packed(
    checkpoint: Path, folder: Path, method: Method, codes: Mapping[str, Codes], tensors: Mapping[str, Floats]
) -> int:
    """Write a checkpoint to the new folder `folder`, and return the bytes of its tensors.

    Args:
        checkpoint: folder with the config and the tokenizer.
        folder: folder to create.
        method: layout of the codes.
        codes: of the quantised matrices, by name.
        tensors: values of all tensors; those without codes are stored as f16.
    """
    folder.mkdir(parents=True)
    stored: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        if name not in codes:
            stored[name] = values.astype(np.float16)
            continue
        module = name.removesuffix(".weight")
        stored.update({f"{module}.{part}": data for part, data in packed_parts(method, codes[name]).items()})
    save_file(stored, folder / "model.safetensors")
    group_size = next(iter(codes.values())).group_size
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {**CONFIGS[method], "group_size": group_size}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    copy_tokenizer_files(checkpoint, folder)
    return sum(data.nbytes for data in stored.values())


def write_values(checkpoint: Path, folder: Path, tensors: Mapping[str, Floats]) -> None:
    """Write a checkpoint of f32 tensors to the new folder `folder`, with the config and tokenizer of `checkpoint`."""
    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / "model.safetensors")
    shutil.copyfile(checkpoint / "config.json", folder / "config.json")
    copy_tokenizer_files(checkpoint, folder)


def copy_tokenizer_files(checkpoint: Path, folder: Path) -> None:
    """Copy the tokenizer and the generation defaults of a checkpoint."""
    for name in COPIED:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, folder / name)
