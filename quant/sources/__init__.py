"""Sources of models to convert: one protocol, one module per kind of source."""

from __future__ import annotations

from pathlib import Path

from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed import is_packed, wrap
from quant.sources.source import QuantisedRows, Rows, Source, TensorInfo
from quant.sources.tensor_checks import check_tensors

__all__ = ["QuantisedRows", "Rows", "Source", "TensorInfo", "check_tensors", "open_source"]


def open_source(path: str | Path) -> Source:
    """Open a Hugging Face checkpoint folder, packed or not. Raises CheckpointError if it is missing or invalid."""
    checkpoint = HuggingFaceCheckpoint.open(path, integers=True)
    if is_packed(checkpoint):
        return wrap(checkpoint)
    checkpoint.refuse_integers()
    return checkpoint
