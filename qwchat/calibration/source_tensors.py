"""Tensors of a checkpoint for a decoder, unquantised, read from the files when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError
from quant.formats import PackedTensor, dequantise, dequantise_rows, find_format, layout
from quant.formats.format import TILE_ROWS
from quant.model_config import ModelConfig
from quant.quantisers import quantise
from quant.sources import QuantisedRows, Source

EMBEDDING = "model.embed_tokens.weight"
_PIECE_WEIGHTS = 1 << 20


class SourceTensors:
    """A checkpoint as a `qwchat.model.tensor_source.TensorSource`: bf16 stays bf16, every other type becomes f32.

    Nothing is kept: a decoder of one layer holds the weights of one layer. Reading needs about 12 MB per thread beside
    the packed tensor. Values of a quantised checkpoint are those that its codes stand for.

    Args:
        source: the open checkpoint.
        threads: threads that read.
        replaced: tensors to return instead of those of the checkpoint, by name.
    """

    def __init__(self, source: Source, threads: int, replaced: Mapping[str, PackedTensor] | None = None) -> None:
        self._source, self._threads = source, threads
        self._replaced = replaced or {}

    @property
    def path(self) -> Path:
        """The checkpoint, for messages."""
        return self._source.path

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""
        return self._source.config

    def replacing(self, tensors: Mapping[str, PackedTensor]) -> SourceTensors:
        """Return the same tensors, with some of them replaced."""
        return SourceTensors(self._source, self._threads, {**self._replaced, **tensors})

    def tensor(self, name: str) -> PackedTensor:
        """Return the tensor `name` as bf16, f32 or a vector. Raises CheckpointError if it cannot be read."""
        if name in self._replaced:
            return self._replaced[name]
        info = self._source.tensors[name]
        if len(info.shape) == 1:
            return quantise("vector", self.rows(name, 0, info.shape[0]), 0)[0]
        return self._pack(name, "bf16" if info.dtype == "bf16" else "f32", self.rows)

    def rounded(self, name: str, kind: str) -> PackedTensor:
        """Return the matrix `name` as f32, with the values that the format `kind` gives it.

        Raises:
            CheckpointError: it cannot be read.
            FormatError: the shape does not fit the format.
        """
        group_size, *_ = find_format(kind).group_sizes

        def rows(name: str, start: int, stop: int) -> NDArray[np.float32]:
            return dequantise(quantise(kind, self.rows(name, start, stop), group_size)[0])

        return self._pack(name, "f32", rows)

    def _pack(self, name: str, kind: str, rows: Callable[[str, int, int], NDArray[np.float32]]) -> PackedTensor:
        """Return the matrix `name` in a dense format, from rows that several threads read."""
        shape = self._source.tensors[name].shape
        parts = {part: np.empty(size, dtype) for part, (dtype, size) in layout(kind, shape).items()}
        tiles = parts["values"]

        def fill(piece: tuple[int, int]) -> None:
            start, stop = piece
            packed, _ = quantise(kind, rows(name, start, stop), 0)
            tiles[start // TILE_ROWS : -(-stop // TILE_ROWS)] = packed.parts["values"]

        with ThreadPoolExecutor(self._threads, thread_name_prefix="read") as pool:
            for _ in pool.map(fill, _pieces(shape)):
                pass
        return PackedTensor(kind, shape, 0, parts)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return the values of rows `start` to `stop`, exclusive, of a tensor.

        Raises:
            CheckpointError: they cannot be read, or are not finite.
        """
        read = self._source.read(name, start, stop)
        values = read.dequantise() if isinstance(read, QuantisedRows) else read
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.path}: tensor {name} has values that are not finite; download it again")
        return values

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of some tokens, (tokens, hidden) f32, without reading the rows of others."""
        if (replaced := self._replaced.get(EMBEDDING)) is not None:
            return dequantise_rows(replaced, token_ids)
        unique, places = np.unique(token_ids, return_inverse=True)
        return np.concatenate([self.rows(EMBEDDING, int(row), int(row) + 1) for row in unique])[places]


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows in multiples of a tile, about 1 Mi weights each."""
    rows, columns = shape
    size = max(1, _PIECE_WEIGHTS // (columns * TILE_ROWS)) * TILE_ROWS
    for start in range(0, rows, size):
        yield start, min(start + size, rows)
