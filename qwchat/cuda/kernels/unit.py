"""What the toolchain compiles: kernels, and units of kernels that share one PTX file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TARGETS = (75, 80, 90)
"""Compute capabilities that have PTX of their own; newer GPUs take the highest that they can run."""

LETTERS = "lif"
"""Types of kernel parameters: l = address (u64), i = i32, f = f32."""


@dataclass(frozen=True)
class Kernel:
    """A kernel: its source and how it is launched.

    Attributes:
        function: Plain Python function of addresses and 32-bit numbers. Its name is the exported name.
        signature: One of `LETTERS` per parameter.
        threads: Threads per block.
        blocks_per_sm: Blocks that must fit on a multiprocessor at once, which bounds the registers.
    """

    function: Callable[..., Any]
    signature: str
    threads: int
    blocks_per_sm: int

    def __post_init__(self) -> None:
        names = [*inspect.signature(self.function).parameters]
        if len(names) != len(self.signature) or not set(self.signature) <= set(LETTERS):
            raise ValueError(f"kernel {self.name}: signature {self.signature!r} does not fit {', '.join(names)}")

    @property
    def name(self) -> str:
        """Return the exported name."""
        return self.function.__name__

    @property
    def parameters(self) -> list[list[str]]:
        """Return `[name, letter]` of each parameter."""
        names = inspect.signature(self.function).parameters
        return [[name, letter] for name, letter in zip(names, self.signature, strict=True)]


@dataclass(frozen=True)
class Unit:
    """The kernels of one PTX file."""

    name: str
    kernels: tuple[Kernel, ...]
