"""Settings of a packed checkpoint: the quantization_config in its config.json."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from quant.json_fields import JsonFields
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.matrix import HOMES, PackedMatrix

_MAX_GROUP_SIZE = 1 << 24


class PackedScheme(ABC):
    """Settings of one form of packed checkpoints."""

    suffix: ClassVar[str]
    """Suffix of the tensors that hold the codes. The name of the module precedes it."""

    @classmethod
    @abstractmethod
    def parse(cls, fields: JsonFields) -> Self:
        """Read quantization_config. Raises the error of `fields` for unsupported values."""

    @abstractmethod
    def open_matrix(self, checkpoint: HuggingFaceCheckpoint, module: str) -> PackedMatrix:
        """Check the tensors of a module. Raises CheckpointError if they contradict each other or the settings."""


def read_bits(fields: JsonFields, key: str, supported: tuple[int, ...] = tuple(HOMES)) -> int:
    """Return the bits per code. Raises the error of `fields` if they are not supported."""
    bits = fields.integer(key, 1, 64)
    if bits not in supported:
        raise fields.invalid(f"codes of {bits} bits are not supported; only {' and '.join(map(str, supported))} are")
    return bits


def read_group_size(fields: JsonFields) -> int:
    """Return the columns per group, or 0 for one group per row, which files write as -1."""
    size = fields.integer("group_size", -1, _MAX_GROUP_SIZE)
    if size == 0:
        raise fields.invalid("group_size is 0, expected a positive number, or -1 for one group per row")
    return max(size, 0)


def check_absent(fields: JsonFields, features: Mapping[str, str]) -> None:
    """Raise the error of `fields` if one of the keys of `features` has a value. Messages name the feature."""
    for key, feature in features.items():
        if fields.values.get(key):
            raise fields.invalid(f"{feature} ({key}) are not supported")
