"""Where a decoder reads a model from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from quant.formats import PackedTensor
from quant.model_config import ModelConfig


class TensorSource(Protocol):
    """Source of a model's config and packed tensors; outside of tests a `quant.container.ModelFolder`."""

    @property
    def path(self) -> Path:
        """Path that error messages name."""

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""

    def tensor(self, name: str) -> PackedTensor:
        """Return the tensor `name`."""
