"""Whether a model fits the free memory, before it is loaded. Where much is free, this costs a millisecond."""

from __future__ import annotations

from pathlib import Path

from quant.container import WEIGHTS_NAME, is_model_folder, open_model
from quant.errors import QuantError
from quant.families import read_config
from quant.wording import ArgumentMessage
from qwchat.cpu.kernels.thread_counts import default_threads
from qwchat.cpu.kv_cache import cache_bytes, choose_kv_kind
from qwchat.cpu.memory import available_memory
from qwchat.errors import UsageError
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.model.context_limits import choose_context

_PLENTY = 1 << 30
"""More memory than a process needs besides weights and cache."""


def check_memory(
    path: Path, context: int | None, kv: str, threads: int | None, activations: int = DEFAULT_ACTIVATIONS
) -> ArgumentMessage | None:
    """Check that a model on the CPU fits the free memory. Pages that only cache files count as free.

    Mapped weights may be larger: then the system reads them from the disk again for each token.

    Args:
        path: a model folder. One that cannot be read is not checked; loading it says why.
        context: tokens of the context window; None for the default.
        kv: kind of the KV cache, or `auto`.
        threads: number of threads; None for the default.
        activations: bits of the activations.

    Returns:
        A warning if the weights do not fit beside everything else, otherwise None.

    Raises:
        NotEnoughMemoryError: KV cache and work space do not fit.
    """
    available = available_memory()
    if available is None or not is_model_folder(path):
        return None
    try:
        config = read_config(path)
        positions = choose_context(config, context)
        cache = cache_bytes(config, positions, choose_kv_kind(kv, config, positions), config.num_layers)
        if (path / WEIGHTS_NAME).stat().st_size + cache + _PLENTY <= available:
            return None
        folder = open_model(path)
    except (QuantError, OSError, UsageError):
        return None
    from qwchat.store.memory_shortage import describe_shortage

    return describe_shortage(folder, positions, kv, threads or default_threads(), available, activations)
