"""Read the compiled kernels: PTX text per unit and target, and how each kernel is launched."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PTX_FOLDER = Path(__file__).parent / "ptx"
TARGETS = (75, 80, 90)
"""Compute capabilities that have PTX of their own."""


@dataclass(frozen=True)
class KernelRecord:
    """How a kernel is launched.

    Attributes:
        name: Exported name.
        unit: Name of its PTX file.
        parameters: `(name, letter)` in order; l = address (u64), i = i32, f = f32.
        threads: Threads per block.
        blocks_per_sm: Blocks that fit on a multiprocessor at once.
        shared_bytes: Static shared memory by target.
    """

    name: str
    unit: str
    parameters: tuple[tuple[str, str], ...]
    threads: int
    blocks_per_sm: int
    shared_bytes: dict[int, int]


def target_for(capability: int) -> int:
    """Return the best target for a GPU of compute capability `capability` (89 = 8.9), at least 75."""
    return max(target for target in TARGETS if target <= capability)


@functools.cache
def kernels() -> dict[str, KernelRecord]:
    """Return all kernels by name."""
    found = {}
    for file in sorted((PTX_FOLDER / "manifest").glob("*.json")):
        for name, record in json.loads(file.read_text("utf-8"))["kernels"].items():
            found[name] = _record(name, file.stem, record)
    return found


def ptx_text(unit: str, target: int) -> str:
    """Return the PTX of a unit for a target."""
    return (PTX_FOLDER / f"sm_{target}" / f"{unit}.ptx").read_text("ascii")


def _record(name: str, unit: str, record: dict[str, Any]) -> KernelRecord:
    return KernelRecord(
        name=name,
        unit=unit,
        parameters=tuple((each, letter) for each, letter in record["parameters"]),
        threads=record["threads"],
        blocks_per_sm=record["blocks_per_sm"],
        shared_bytes={int(target): size for target, size in record["shared_bytes"].items()},
    )
