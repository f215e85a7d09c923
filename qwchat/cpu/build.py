"""Build a decoder on the CPU from the user's options."""

from __future__ import annotations

from quant.wording import Argument, ArgumentMessage
from qwchat.cpu.decoder import CpuDecoder
from qwchat.cpu.kernels.records import KV_KINDS
from qwchat.cpu.kernels.thread_counts import default_threads
from qwchat.errors import UsageError
from qwchat.limits import ACTIVATION_BITS, DEFAULT_ACTIVATIONS, MAX_THREADS
from qwchat.model.context_limits import choose_context
from qwchat.model.tensor_source import TensorSource


def build_decoder(
    folder: TensorSource,
    *,
    context: int | None = None,
    threads: int | None = None,
    kv: str = "auto",
    activations: int = DEFAULT_ACTIVATIONS,
    layers: range | None = None,
) -> CpuDecoder:
    """Return a decoder of a model.

    Args:
        folder: config and tensors.
        context: positions of each KV cache; None chooses as `qwchat.model.context_limits.choose_context` does.
        threads: threads that compute; None means one per physical core.
        kv: kind of the KV caches, `f32`, `q8` or `auto` (see `qwchat.cpu.kv_cache.choose_kv_kind`).
        activations: bits of the activations that matrices of integer formats are multiplied by, 8 or 16.
        layers: the layers to run; None for all.

    Raises:
        UsageError: a value is out of range.
        ModelError: the kernels cannot run the model's shapes or formats.
        NotEnoughMemoryError: there is not enough memory for the work space.
    """
    if kv not in ("auto", *KV_KINDS):
        raise UsageError(ArgumentMessage(Argument("kv"), f" must be auto, {' or '.join(KV_KINDS)}, not {kv}"))
    if activations not in ACTIVATION_BITS:
        raise UsageError(ArgumentMessage(Argument("activations"), f" must be 8 or 16, not {activations}"))
    positions = choose_context(folder.config, context)
    return CpuDecoder(
        folder, context=positions, threads=_choose_threads(threads), kv=kv, activations=activations, layers=layers
    )


def _choose_threads(requested: int | None) -> int:
    if requested is None:
        return default_threads()
    if not 1 <= requested <= MAX_THREADS:
        raise UsageError(ArgumentMessage(Argument("threads"), f" must be from 1 to {MAX_THREADS}, not {requested}"))
    return requested
