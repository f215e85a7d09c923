"""Sources of models to convert: one protocol, one module per kind of source."""

from __future__ import annotations

from pathlib import Path

from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.source import QuantisedRows, Rows, Source, TensorInfo
from quant.sources.tensor_checks import check_tensors

__all__ = ["QuantisedRows", "Rows", "Source", "TensorInfo", "check_tensors", "open_source"]


def open_source(path: str | Path) -> Source:
    """Open a Hugging Face checkpoint folder. Raises CheckpointError if it is missing or invalid."""
    return HuggingFaceCheckpoint.open(path)
