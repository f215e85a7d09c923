"""What the commands need from outside the command line, in one place where it can be exchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwchat.api import Model


def load_model(
    path: Path, *, threads: int | None = None, context: int | None = None, device: str = "auto", kv: str = "auto"
) -> Model:
    """Open a model folder with the real engine; see ``qwchat.load``."""
    import qwchat

    return qwchat.load(path, threads=threads, context=context, device=device, kv=kv)


def kernels_are_compiled() -> bool:
    """Whether loading a model will find its kernels compiled, or will first have to compile them."""
    from qwchat.kernels.jit import is_compiled

    return bool(is_compiled())


def measure_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read from memory."""
    from qwchat.kernels.probe import read_bandwidth

    return float(read_bandwidth(threads))


def measure_int8_peak(threads: int) -> float:
    """Operations per second of the int8 dot product on ``threads`` threads (a multiply-add counts as two)."""
    from qwchat.kernels.probe import int8_peak

    return float(int8_peak(threads))


@dataclass(frozen=True)
class Services:
    """The engine and the probes of the machine."""

    load: Callable[..., Model] = load_model
    compiled: Callable[[], bool] = kernels_are_compiled
    bandwidth: Callable[[int], float] = measure_bandwidth
    int8_peak: Callable[[int], float] = measure_int8_peak
