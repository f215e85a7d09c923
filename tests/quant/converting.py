"""Running conversions in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quant import convert
from quant.conversion import ConversionEvent, TensorFinished


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(source: Path, destination: Path, **options: Any) -> list[ConversionEvent]:
    """Convert to the end."""
    return list(convert(source, destination, **options))


def stop_after(source: Path, destination: Path, tensors: int, **options: Any) -> None:
    """Start a conversion and cancel it when so many tensors are finished."""
    events = convert(source, destination, **options)
    for event in events:
        tensors -= isinstance(event, TensorFinished)
        if not tensors:
            break
    events.close()
