"""Hugging Face checkpoints whose weights are packed integers: GPTQ, AWQ and compressed-tensors."""

from __future__ import annotations

from pathlib import Path

from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.packed_checkpoint import PackedCheckpoint, is_packed

__all__ = ["PackedCheckpoint", "is_packed", "open_packed", "wrap"]


def open_packed(folder: str | Path) -> PackedCheckpoint:
    """Open a checkpoint folder whose config.json has a quantization_config.

    Raises:
        CheckpointError: the folder is not a valid checkpoint, or its form of quantisation is not supported.
    """
    return wrap(HuggingFaceCheckpoint.open(folder, integers=True))


def wrap(checkpoint: HuggingFaceCheckpoint) -> PackedCheckpoint:
    """Return the packed checkpoint in the files of `checkpoint`, which was opened with `integers`.

    All shards must be present before the tensors are asked for: the zero points, column orders and scales decide
    whether a matrix has a home.

    Raises:
        CheckpointError: the form of quantisation is not supported.
    """
    return PackedCheckpoint(checkpoint)
