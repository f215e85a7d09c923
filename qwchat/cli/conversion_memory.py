"""Whether a conversion fits the free memory, and its result the machine, before anything is converted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.units import data_size
from quant.wording import ArgumentMessage, SuggestedArgument
from qwchat.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    from quant.conversion import ConversionPlanned

_BASE_BYTES = 80_000_000
_BYTES_PER_WEIGHT = 12
"""Memory of a conversion besides its threads, and of a weight that a thread quantises: 71 MB and 11 bytes measured."""
_FEEDBACK_BYTES_PER_WEIGHT = 52
_BYTES_PER_MOMENT = 12
"""Memory of a weight that a thread quantises with error feedback, and of an element of the moments of its inputs."""


def check_conversion_memory(planned: ConversionPlanned, threads: int | None) -> None:
    """Check that the threads of a conversion fit the free memory; None is one thread per processor.

    Raises:
        NotEnoughMemoryError: they do not.
    """
    from quant.machine import usable_processors
    from qwchat.cpu.memory import available_memory

    available, count = available_memory(), threads or len(usable_processors())
    base, per_thread = _base_bytes(planned), _bytes_per_thread(planned)
    needed = base + count * per_thread
    if available is None or needed <= available:
        return
    fitting = (available - base) // per_thread
    problem = (
        f"converting with {count} threads needs {data_size(needed)} of memory, but only {data_size(available)} are free"
    )
    if fitting < 1:
        raise NotEnoughMemoryError(f"{problem}: close other programs")
    raise NotEnoughMemoryError(ArgumentMessage(f"{problem}: use ", SuggestedArgument("threads", fitting)))


def _base_bytes(planned: ConversionPlanned) -> int:
    """Return the memory that the threads share."""
    if not planned.calibrated:
        return _BASE_BYTES
    from quant.calibration import block_sizes

    columns = max(tensor.shape[1] for tensor in planned.tensors if len(tensor.shape) == 2)
    return _BASE_BYTES + _BYTES_PER_MOMENT * sum(size * size for size in block_sizes(columns))


def _bytes_per_thread(planned: ConversionPlanned) -> int:
    from quant.tensor_pipeline import CHUNK_WEIGHTS, FEEDBACK_CHUNK_WEIGHTS

    largest = max(tensor.parameters for tensor in planned.tensors)
    if planned.calibrated:
        return _FEEDBACK_BYTES_PER_WEIGHT * min(FEEDBACK_CHUNK_WEIGHTS, largest)
    return _BYTES_PER_WEIGHT * min(CHUNK_WEIGHTS, largest)


def oversize_warning(weights: int) -> str | None:
    """Return a warning if a model with so many bytes of weights does not fit this machine; None if it does."""
    from qwchat.cpu.memory import total_memory

    memory = total_memory()
    if memory is None or weights <= memory:
        return None
    from qwchat.store.recommendation import fitting_machine

    fitting = fitting_machine(memory)
    smaller = f"a smaller model, such as {fitting[-1].name}" if fitting else "a smaller model"
    return (
        f"the model will have {data_size(weights)} and this machine has {data_size(memory)} of memory, so each token "
        f"will read weights from the disk: take a smaller preset, or {smaller}"
    )
