"""Helpers that run conversions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quant import convert
from quant.conversion import ConversionEvent, TensorFinished


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(source: Path, destination: Path, **options: Any) -> list[ConversionEvent]:
    """Run a conversion to its end and return its events."""
    return list(convert(source, destination, **options))


def stop_after(source: Path, destination: Path, tensors: int, **options: Any) -> None:
    """Start a conversion and cancel it after a number of tensors."""
    events = convert(source, destination, **options)
    for event in events:
        tensors -= isinstance(event, TensorFinished)
        if not tensors:
            break
    events.close()
