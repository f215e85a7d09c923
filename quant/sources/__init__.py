"""Where models to be converted come from: one protocol, one file per kind of source."""

from __future__ import annotations

from pathlib import Path

from quant.sources.base import Grouped, Rows, Source, TensorInfo
from quant.sources.checking import check_tensors
from quant.sources.huggingface import Checkpoint

__all__ = ["Grouped", "Rows", "Source", "TensorInfo", "check_tensors", "open_source"]


def open_source(path: str | Path) -> Source:
    """Open what is at `path`, a Hugging Face checkpoint folder. Raises CheckpointError if it is not one."""
    return Checkpoint.open(path)
