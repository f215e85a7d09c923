"""A copy within the device: what its memory can do, which the speed of other kernels is compared with."""

from __future__ import annotations

from typing import Any

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, cuda
from qwchat.cuda.kernels.unit import Kernel, Unit

_THREADS = 256
_WORD_BYTES = 16


def copy_words(target: Any, source: Any, words: Any) -> None:
    """Copy `words` words of 16 bytes from `source` to `target`; any grid."""
    word = A(cuda.blockIdx.x) * A(_THREADS) + A(cuda.threadIdx.x)
    step = A(cuda.gridDim.x) * A(_THREADS)
    while word < A(words):
        at = word * A(_WORD_BYTES)
        a, b, c, d = p.load4(source + at)
        p.store4(target + at, a, b, c, d)
        word += step


def units(target: int) -> list[Unit]:
    """Return the units of this file."""
    return [Unit("copy", (Kernel(copy_words, "lli", _THREADS, 4),))]
