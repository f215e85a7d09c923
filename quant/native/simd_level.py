"""SIMD level that the kernels are compiled for.

`avx512vnni`  64-byte registers and `vpdpbusd zmm`
`avxvnni`     32-byte registers and `vpdpbusd ymm` in its VEX form
`avx2`        32-byte registers; 8-bit dot products through exact 16-bit multiply-adds
`neon`        16-byte registers of AArch64 and `sdot`
`portable`    plain LLVM vectors; runs on every LLVM target

Every level computes the same numbers in the same order. Only the instruction of the dot product differs.
`QWCHAT_SIMD` forces a level. It is read once, when the kernels are first imported.
"""

from __future__ import annotations

import os
import platform
from functools import cache

from quant.errors import ArgumentError

LEVELS = ("avx512vnni", "avxvnni", "avx2", "neon", "portable")
_REQUIRED_FEATURES: dict[str, tuple[str, ...]] = {
    "avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "f16c", "fma"),
    "avxvnni": ("avxvnni", "avx2", "fma", "f16c"),
    "avx2": ("avx2", "fma", "f16c"),
    "neon": ("neon", "dotprod"),
    "portable": (),
}
_VECTOR_REGISTERS = {"avx512vnni": 32, "avxvnni": 8, "avx2": 8, "neon": 8, "portable": 4}


def architecture() -> str:
    """Return the architecture: `x86`, `aarch64`, or the machine name that Python reports."""
    machine = platform.machine().lower()
    return {"x86_64": "x86", "amd64": "x86", "arm64": "aarch64"}.get(machine, machine)


@cache
def host_features() -> dict[str, bool]:
    """Return the features of the processor, by LLVM's names."""
    from quant.native.llvm import binding as llvm

    if architecture() == "aarch64" and platform.system() == "Darwin":
        # LLVM does not report features there. Every Mac with an ARM processor has both.
        return {"neon": True, "dotprod": True}
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot query this processor
        return {}


@cache
def host_cpu() -> str:
    """Return LLVM's name of the processor."""
    from quant.native.llvm import binding as llvm

    return str(llvm.get_host_cpu_name())


@cache
def supported_levels() -> tuple[str, ...]:
    """Return the levels that this machine supports, fastest first."""
    features = host_features()
    return tuple(
        level for level in LEVELS if all(features.get(feature, False) for feature in _REQUIRED_FEATURES[level])
    )


def vector_registers() -> int:
    """Return how many 64-byte vectors fit the registers of the current level (portable: those of plain SSE)."""
    return _VECTOR_REGISTERS[current_level()]


def lanes() -> int:
    """Return the 32-bit lanes of a register of the current level. At the portable level, LLVM splits vectors of 16."""
    return {"avxvnni": 8, "avx2": 8, "neon": 4}.get(current_level(), 16)


@cache
def current_level() -> str:
    """Return the current level: the forced one, or the fastest that this machine supports.

    Raises:
        ArgumentError: `QWCHAT_SIMD` does not name a level, or names one that this machine does not support.
    """
    forced = os.environ.get("QWCHAT_SIMD", "").strip().lower()
    if not forced:
        return supported_levels()[0]
    if forced not in LEVELS:
        raise ArgumentError(f"QWCHAT_SIMD={forced!r} is not a SIMD level; choose one of {', '.join(LEVELS)}")
    if forced not in supported_levels():
        raise ArgumentError(
            f"QWCHAT_SIMD={forced} needs CPU features that this machine does not have; "
            f"choose one of {', '.join(supported_levels())}"
        )
    return forced
