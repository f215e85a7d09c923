"""What to do about a model that does not fit the free memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from quant.container import ModelFolder
from quant.model_config import ModelConfig
from quant.units import data_size
from quant.wording import ArgumentMessage, SuggestedArgument
from qwchat.errors import NotEnoughMemoryError
from qwchat.model.gpu_memory import Tensors, stored_tensors
from qwchat.store.memory_estimate import MemoryEstimate, estimate, planned_tensors
from qwchat.store.recommendation import fitting_machine

_LEAST_CONTEXT = 1024
_MOST_REMEDIES = 2
_PRESETS = ("q8", "q4", "q4-small")


def describe_shortage(
    folder: ModelFolder, context: int, kv: str, threads: int, available: int, activations: int
) -> ArgumentMessage | None:
    """Return a warning if a model needs more than `available` bytes, with what would fit; None if it fits.

    Raises:
        NotEnoughMemoryError: it does not fit even without its weights, which are mapped.
    """
    tensors = stored_tensors(folder.config, folder.tensor)
    needed = estimate(folder.config, tensors, context, kv, threads, activations)
    if needed.total <= available:
        return None
    estimated = partial(estimate, threads=threads, activations=activations)
    clauses = list(_remedies(folder.config, tensors, needed, kv, available, estimated))
    remedy = _joined(clauses[:_MOST_REMEDIES]) if clauses else ArgumentMessage("take a smaller model")
    if needed.anonymous > available:
        only = f"{folder.path.name} needs {_sizes(needed)}, but only {data_size(available)} are free: "
        raise NotEnoughMemoryError(ArgumentMessage(only, remedy))
    return ArgumentMessage(
        f"{folder.path.name} needs {_sizes(needed)}, and {data_size(available)} are free, so each token reads weights "
        "from the disk: ",
        remedy,
    )


def _sizes(needed: MemoryEstimate) -> str:
    return (
        f"{data_size(needed.total)} of memory ({data_size(needed.weights)} for weights, {data_size(needed.cache)} for "
        f"a KV cache of {needed.context:,} tokens)"
    )


def _remedies(
    config: ModelConfig,
    tensors: Tensors,
    needed: MemoryEstimate,
    kv: str,
    available: int,
    estimated: Callable[..., MemoryEstimate],
) -> Iterator[ArgumentMessage]:
    """Yield what would fit, each as a clause: another cache, a shorter window, a smaller preset, a smaller model."""
    if needed.kv != "q8" and estimated(config, tensors, needed.context, "q8").total <= available:
        yield ArgumentMessage("use ", SuggestedArgument("kv", "q8"))
    context = 1 << (needed.context - 1).bit_length() - 1
    while context >= _LEAST_CONTEXT:
        if estimated(config, tensors, context, kv).total <= available:
            yield ArgumentMessage("use ", SuggestedArgument("context", context))
            break
        context //= 2
    for preset in _PRESETS:
        smaller = estimated(config, planned_tensors(config, preset), needed.context, kv)
        if smaller.weights < needed.weights and smaller.total <= available:
            yield ArgumentMessage("pull or convert it with ", SuggestedArgument("preset", preset))
            return
    if fitting := [model for model in fitting_machine(available, share=1) if model.needed < needed.total]:
        yield ArgumentMessage(f"take a smaller model, such as {fitting[-1].name}")


def _joined(clauses: list[ArgumentMessage]) -> ArgumentMessage:
    first, *others = clauses
    return ArgumentMessage(first, *(part for clause in others for part in (", or ", clause)))
