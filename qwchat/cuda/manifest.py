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

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(name for name, _ in self.parameters)

    @functools.cached_property
    def letters(self) -> str:
        """Letters of the parameters."""
        return "".join(letter for _, letter in self.parameters)


@functools.cache
def kernels(folder: Path = PTX_FOLDER) -> dict[str, KernelRecord]:
    """Return all kernels in a folder of PTX by name."""
    found = {}
    for file in sorted((folder / "manifest").glob("*.json")):
        for name, record in json.loads(file.read_text("utf-8"))["kernels"].items():
            found[name] = _record(name, file.stem, record)
    return found


def ptx_text(unit: str, target: int, folder: Path = PTX_FOLDER) -> str:
    """Return the PTX of a unit for a target."""
    return (folder / f"sm_{target}" / f"{unit}.ptx").read_text("ascii")


def _record(name: str, unit: str, record: dict[str, Any]) -> KernelRecord:
    return KernelRecord(
        name=name,
        unit=unit,
        parameters=tuple((each, letter) for each, letter in record["parameters"]),
        threads=record["threads"],
        blocks_per_sm=record["blocks_per_sm"],
        shared_bytes={int(target): size for target, size in record["shared_bytes"].items()},
    )
