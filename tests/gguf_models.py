"""Write test checkpoints as GGUF files with the reference writer, also split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.gguf_files import add_metadata, checkpoint_tensors


def write_gguf(checkpoint: Path, path: Path, kind: str = "Q8_0", *, parts: int = 1) -> list[Path]:
    """Write a bf16 Qwen2 checkpoint as a GGUF file, or as several.

    Args:
        checkpoint: folder of the checkpoint.
        path: file to write; the parts of a split model are named after it.
        kind: type of the matrices, one that the `gguf` package can quantise to, or BF16.
        parts: number of files.

    Returns:
        The files in order.
    """
    import gguf

    tensors = list(checkpoint_tensors(checkpoint))
    most = -(-len(tensors) // parts) if parts > 1 else 0
    writer = gguf.GGUFWriter(path, "qwen2", split_max_tensors=most)
    config = add_metadata(writer, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    stored = gguf.GGMLQuantizationType[kind]
    for name, bits in tensors:
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        values = (bits.astype(np.uint32) << 16).view(np.float32)
        if values.ndim == 1:
            writer.add_tensor(known, values)
        else:
            writer.add_tensor(known, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if parts == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number:05d}-of-{parts:05d}.gguf") for number in range(1, parts + 1)]
