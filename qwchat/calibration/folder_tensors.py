"""Tensors of an unquantised model folder for a calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quant.container import ModelFolder
from quant.families import family_of
from quant.formats import PackedTensor, dequantise_rows
from quant.model_config import ModelConfig
from qwchat.errors import ModelError
from qwchat.model.tensor_source import TensorSource

_UNQUANTISED = frozenset(("bf16", "f32", "vector"))


class UnquantisedTensors(TensorSource, Protocol):
    """Tensors of a model that is not quantised, and its embedding row by row."""

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of some tokens, (tokens, hidden) f32."""


class FolderTensors:
    """A model folder of the preset `dense`.

    Args:
        folder: the opened folder.

    Raises:
        ModelError: a tensor of it is quantised.
    """

    def __init__(self, folder: ModelFolder) -> None:
        if not _UNQUANTISED.issuperset(folder.formats):
            raise ModelError(
                f"{folder.path} is quantised ({folder.preset}): give the checkpoint that it was converted from"
            )
        self._folder = folder

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""
        return self._folder.config

    def tensor(self, name: str) -> PackedTensor:
        """Return the tensor `name`, mapped."""
        return self._folder.tensor(name)

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of some tokens, (tokens, hidden) f32."""
        return dequantise_rows(self._folder.tensor(family_of(self.config).embedding_name), token_ids)
