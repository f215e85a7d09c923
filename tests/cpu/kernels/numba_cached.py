"""Kernels that only tests use, and parts of kernels that Python calls; Numba caches them, for speed.

The program never uses that cache, which unpickles what it finds. It is in the private folder of the compiled kernels,
whose name depends on all sources, since Numba does not notice changes of the functions that a kernel calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.native import compiler
from quant.native.backend import config
from qwchat.cpu.kernels.kernel_store import KERNELS

config.CACHE_DIR = str(KERNELS.writable_folder)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for Python to call."""
    return compiler.jitted(function, cache=True)


def _for_python(function: Callable[..., Any], **options: bool) -> Any:
    return compiler.jitted(function, cache=True, **options)


compiler.for_python = _for_python
