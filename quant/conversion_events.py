"""Events of a conversion, in the order in which they occur."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quant.policy import TensorPlan
from quant.quality import Quality
from quant.quantisers.machine_code import CompileStage, CompilingQuantiser, WaitingForCompiler

__all__ = [
    "CompilingQuantiser",
    "ConversionAdvanced",
    "ConversionEvent",
    "ConversionFinished",
    "ConversionNotice",
    "ConversionPlanned",
    "QualityCheckStarted",
    "TensorFinished",
    "TensorStarted",
    "WaitingForCompiler",
]


@dataclass(frozen=True)
class ConversionPlanned:
    """First event: the exact sizes in bytes, before any work is done, and whether there is a calibration."""

    total_bytes_in: int
    total_bytes_out: int
    tensors: tuple[TensorPlan, ...]
    bits_per_weight: float
    preset: str
    calibrated: bool = False


@dataclass(frozen=True)
class TensorStarted:
    """The first rows of a tensor have been quantised."""

    name: str
    format: str


@dataclass(frozen=True)
class ConversionAdvanced:
    """Progress in source bytes, including those of an earlier attempt that is resumed.

    With a calibration, it is the share of the work that is finished, as a share of the source bytes.
    """

    bytes_done: int


@dataclass(frozen=True)
class TensorFinished:
    """A tensor has been written and journalled. `error` is sqrt(sum of squared errors / sum of squares)."""

    name: str
    format: str
    error: float


@dataclass(frozen=True)
class QualityCheckStarted:
    """All tensors are written; the model is compared with its source before it is published."""


@dataclass(frozen=True)
class ConversionFinished:
    """Last event: the model folder is complete. `quality` is None if it was not measured."""

    path: Path
    bits_per_weight: float
    seconds: float
    quality: Quality | None = None


@dataclass(frozen=True)
class ConversionNotice:
    """Text to show to the user. The conversion continues."""

    text: str


ConversionEvent = (
    ConversionPlanned
    | CompileStage
    | TensorStarted
    | ConversionAdvanced
    | TensorFinished
    | QualityCheckStarted
    | ConversionFinished
    | ConversionNotice
)
