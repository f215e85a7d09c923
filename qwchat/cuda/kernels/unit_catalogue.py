"""All units that are compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qwchat.cuda.kernels import (
    candidates,
    copy,
    decode_attention,
    embedding,
    gemm,
    gemv,
    gemv_dense,
    prefill_attention,
    prefill_rope,
    prefill_rows,
    silu,
)
from qwchat.cuda.kernels.unit import TARGETS, Unit

BUILDERS: tuple[Callable[[int], list[Unit]], ...] = (
    candidates.units,
    copy.units,
    decode_attention.units,
    embedding.units,
    gemm.units,
    gemv.units,
    gemv_dense.units,
    prefill_attention.units,
    prefill_rope.units,
    prefill_rows.units,
    silu.units,
)
"""Functions that return the units of a file for a target (75, 80 or 90)."""


@dataclass
class Entry:
    """A unit of the catalogue.

    Attributes:
        module: File in this folder that builds it, without `.py`.
        variants: The unit for each target.
    """

    module: str
    variants: dict[int, Unit] = field(default_factory=dict)


def all_units() -> dict[str, Entry]:
    """Return the units by name.

    Raises:
        ValueError: Two units or two kernels have the same name, or a kernel's parameters differ between targets.
    """
    found: dict[str, Entry] = {}
    for target in TARGETS:
        for builder in BUILDERS:
            for unit in builder(target):
                entry = found.setdefault(unit.name, Entry(builder.__module__.rpartition(".")[2]))
                if target in entry.variants:
                    raise ValueError(f"two units are named {unit.name}")
                entry.variants[target] = unit
    _check_kernels(found)
    return dict(sorted(found.items()))


def _check_kernels(units: dict[str, Entry]) -> None:
    owner: dict[str, str] = {}
    for name, entry in units.items():
        first = min(entry.variants)
        for kernel in entry.variants[first].kernels:
            if kernel.name in owner:
                raise ValueError(f"two kernels are named {kernel.name}: in {owner[kernel.name]} and in {name}")
            owner[kernel.name] = name
        wanted = [(kernel.name, kernel.parameters) for kernel in entry.variants[first].kernels]
        for target, unit in entry.variants.items():
            if [(kernel.name, kernel.parameters) for kernel in unit.kernels] != wanted:
                raise ValueError(f"unit {name}: the kernels for sm_{target} differ from those for sm_{first}")
