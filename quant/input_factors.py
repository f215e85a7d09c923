"""Factors of a calibration's inputs, one per input, shared by the matrices that read it."""

from __future__ import annotations

from concurrent.futures import Executor, Future

from quant.calibration import Calibration, input_of
from quant.formats import find_format
from quant.model_config import ModelConfig
from quant.policy import TensorPlan
from quant.quantisers import feedback
from quant.quantisers.feedback_factor import DAMPINGS, Factor, factorise

FutureFactor = Future[Factor | None]


class InputFactors:
    """Factors that a conversion requests in the order of its tensors; only the latest one is kept.

    Args:
        calibration: provides the moments.
        config: sizes of the model.
        threads: number of threads that compute a factor.

    Attributes:
        notices: texts for the user about difficult inputs; the caller removes those that it shows.
    """

    def __init__(self, calibration: Calibration, config: ModelConfig, threads: int) -> None:
        self._calibration, self._config, self._threads = calibration, config, threads
        self._latest: tuple[str, FutureFactor] | None = None
        self.notices: list[str] = []

    def waits(self, tensor: TensorPlan) -> bool:
        """Return whether all tensors before `tensor` must have been written before its factor may be requested."""
        name = self._input_of(tensor)
        return self._calibration.ordered and name is not None and (self._latest is None or self._latest[0] != name)

    def request(self, tensor: TensorPlan, pool: Executor) -> FutureFactor | None:
        """Return the factor of a matrix, which a job in `pool` computes; None for a tensor encoded without feedback."""
        name = self._input_of(tensor)
        if name is None:
            return None
        if self._latest is None or self._latest[0] != name:
            self._latest = name, pool.submit(self._compute, name, tensor.name)
        return self._latest[1]

    def _input_of(self, tensor: TensorPlan) -> str | None:
        if tensor.kept or not feedback.supports(find_format(tensor.format)):
            return None
        return input_of(tensor.name, self._config)

    def _compute(self, name: str, tensor: str) -> Factor | None:
        moments = self._calibration.moments(tensor)
        if moments is None:
            return None
        factor = factorise(moments.blocks, moments.cross, self._threads)
        if factor is None:
            self.notices.append(f"the statistics of {name} cannot be used: its matrices are encoded without them")
        elif factor.damping != DAMPINGS[0]:
            self.notices.append(f"the statistics of {name} are nearly singular: damping raised to {factor.damping:g}")
        return factor
