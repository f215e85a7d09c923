"""Which SIMD level the kernels are compiled for.

``avx512vnni``  64-byte registers and ``vpdpbusd zmm``
``avx2``        32-byte registers; 8-bit dot products through exact 16-bit multiply-adds
``portable``    plain LLVM vectors; runs wherever LLVM has a back end

Every level computes the same numbers in the same order: only the instruction behind a dot product differs.
``QWCHAT_SIMD`` forces a level; it is read once, when the kernels are first imported.
"""

from __future__ import annotations

import os
from functools import cache

from qwchat.errors import UsageError

LEVELS = ("avx512vnni", "avx2", "portable")
_NEEDS: dict[str, tuple[str, ...]] = {
    "avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "f16c", "fma"),
    "avx2": ("avx2", "fma", "f16c"),
    "portable": (),
}


@cache
def supported_levels() -> tuple[str, ...]:
    """The levels that this machine can run, the fastest first."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return tuple(level for level in LEVELS if all(features.get(need, False) for need in _NEEDS[level]))


@cache
def current_level() -> str:
    """The level in force.  Raises UsageError if ``QWCHAT_SIMD`` names a level that this machine cannot run."""
    forced = os.environ.get("QWCHAT_SIMD", "").strip().lower()
    if not forced:
        return supported_levels()[0]
    if forced not in LEVELS:
        raise UsageError(f"QWCHAT_SIMD={forced!r} is no SIMD level; choose one of {', '.join(LEVELS)}")
    if forced not in supported_levels():
        raise UsageError(
            f"QWCHAT_SIMD={forced} needs CPU features that this machine lacks; "
            f"it can run {', '.join(supported_levels())}"
        )
    return forced
