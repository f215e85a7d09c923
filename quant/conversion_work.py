"""Work of a conversion, as a share of the source's bytes, which the figure of progress and its remaining time show."""

from __future__ import annotations

from collections.abc import Iterable

from quant.calibration import block_sizes, input_of
from quant.formats import find_format
from quant.model_config import ModelConfig
from quant.policy import TensorPlan
from quant.quantisers import feedback

# Time of a weight in nanoseconds of one core, measured: without feedback; the search of a group with feedback; per
# column that takes a share of its error; and per square of a column in the factor of its inputs.
_PLAIN, _SEARCH, _COLUMN, _FACTOR = 30.0, 120.0, 0.043, 0.009


class Work:
    """Counts finished rows.

    Args:
        plans: all tensors of the conversion.
        config: sizes of the model if it is calibrated; None if it is not, when work is measured in bytes.
    """

    def __init__(self, plans: Iterable[TensorPlan], config: ModelConfig | None) -> None:
        tensors = list(plans)
        self._of_tensor = {tensor.name: _work(tensor, config) for tensor in tensors}
        self._bytes, self._total = sum(tensor.source_bytes for tensor in tensors), sum(self._of_tensor.values())
        self._done = 0

    @property
    def bytes_done(self) -> int:
        """The share of the work that is finished, in bytes of the source."""
        return self._done * self._bytes // self._total

    def add(self, tensors: Iterable[TensorPlan], rows: int | None = None) -> None:
        """Count some rows of each tensor, or all, as finished."""
        for tensor in tensors:
            self._done += self._of_tensor[tensor.name] * (tensor.shape[0] if rows is None else rows) // tensor.shape[0]


def _work(tensor: TensorPlan, config: ModelConfig | None) -> int:
    """Return bytes without a calibration, nanoseconds with one."""
    if config is None:
        return tensor.source_bytes
    with_feedback = not tensor.kept and feedback.supports(find_format(tensor.format))
    if not with_feedback or input_of(tensor.name, config) is None:
        return int(_PLAIN * tensor.parameters)
    rows, columns = tensor.shape
    block = block_sizes(columns)[0]
    return int(columns * (rows * (_SEARCH + _COLUMN * block) + _FACTOR * block * block))
