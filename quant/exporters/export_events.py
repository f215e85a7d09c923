"""Events of an export, in the order in which they are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.exporters.export_plan import TensorExport


@dataclass(frozen=True)
class ExportPlanned:
    """First event: the exact sizes in bytes, before any work is done.

    Attributes:
        total_bytes_in: bytes of the model's tensors.
        total_bytes_out: bytes of all files to write.
        files: size of each weight file, by name.
        tensors: plan of each tensor, in file order.
    """

    total_bytes_in: int
    total_bytes_out: int
    files: Mapping[str, int]
    tensors: tuple[TensorExport, ...]


@dataclass(frozen=True)
class ExportAdvanced:
    """Progress in bytes of the model's tensors, including those of an earlier attempt that is resumed."""

    bytes_done: int
    name: str


@dataclass(frozen=True)
class ExportNotice:
    """Text to show to the user. The export continues."""

    text: str


@dataclass(frozen=True)
class ExportFinished:
    """Last event: the folder is complete.

    Attributes:
        path: the folder.
        errors: sqrt(sum of squared errors / sum of squares) of each tensor; 0 if its values are unchanged.
        checksums: SHA-256 (hex) of each weight file, by name.
        seconds: time taken.
    """

    path: Path
    errors: Mapping[str, float]
    checksums: Mapping[str, str]
    seconds: float


ExportEvent = ExportPlanned | ExportAdvanced | ExportNotice | ExportFinished
