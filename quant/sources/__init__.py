"""Sources of models to convert: one protocol, one module per kind of source."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from quant.gguf_names import gguf_models, parse_name
from quant.safe_files import SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, is_regular_file
from quant.sources.gguf.gguf_source import GgufSource
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed import is_packed, wrap
from quant.sources.source import QuantisedRows, Rows, Source, TensorInfo
from quant.sources.tensor_checks import check_tensors

__all__ = ["QuantisedRows", "Rows", "Source", "TensorInfo", "check_tensors", "open_source"]


def open_source(path: str | Path) -> Source:
    """Open a Hugging Face checkpoint folder, packed or not, a GGUF file, or a folder with the GGUF files of one model.

    A folder with both is a checkpoint.

    Raises:
        CheckpointError: it is missing or invalid.
    """
    path = Path(path)
    named_so = parse_name(path.name) is not None and not path.is_dir()
    if named_so or is_regular_file(path) or _holds_gguf(path):
        return GgufSource.open(path)
    checkpoint = HuggingFaceCheckpoint.open(path, integers=True)
    if is_packed(checkpoint):
        return wrap(checkpoint)
    checkpoint.refuse_integers()
    return checkpoint


def _holds_gguf(folder: Path) -> bool:
    """Return whether `folder` has GGUF files, but no weights of a checkpoint."""
    if (folder / SINGLE_WEIGHTS_NAME).exists() or (folder / WEIGHTS_INDEX_NAME).exists():
        return False
    with suppress(OSError):
        return bool(gguf_models(folder))
    return False
