"""The calibration pass: all tokens through one layer after the other, with the second moments of every input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.calibration import StatisticsHeader, StatisticsWriter, input_columns
from quant.calibration.moments import HEAD_INPUT
from quant.destination import check_free_space, translate_os_errors
from quant.families import expected_tensors
from quant.model_config import ModelConfig
from quant.safe_files import atomic_write
from qwchat.calibration.folder_tensors import UnquantisedTensors
from qwchat.calibration.layer_runner import Inputs, LayerRunner, rms_norm
from qwchat.calibration.moment_sums import MomentSums, moment_bytes
from qwchat.calibration.windows_of_text import Ids, tokens_digest
from qwchat.cpu.memory import require_memory

Rows = NDArray[np.float32]

KINDS = ("input", "attention", "mlp", "activation")
_ROWS = 1024  # of the residual stream that are normed together


@dataclass(frozen=True)
class CalibrationAdvanced:
    """Progress: bytes of the checkpoint's matrices through which all tokens have passed, as a part of `total`."""

    done: int
    total: int


def statistics_header(config: ModelConfig, model: str, pieces: Sequence[Ids], text: str) -> StatisticsHeader:
    """Return the header of the statistics of some pieces of text.

    Args:
        config: the model's shapes.
        model: fingerprint of its checkpoint.
        pieces: token ids of each piece.
        text: where they come from, one line.
    """
    samples = sum(map(len, pieces))
    return StatisticsHeader(model, samples, text, tokens_digest(pieces), input_columns(config))


def required_memory(config: ModelConfig, tokens: int) -> int:
    """Return the bytes that the pass needs at its peak: residual streams, one layer, its sums, and work space."""
    columns = input_columns(config)
    layer = sum(moment_bytes(columns[f"model.layers.0.{kind}"]) for kind in KINDS)
    weights = sum(_elements(shape) * 4 for name, shape in expected_tensors(config).items() if ".layers.0." in name)
    largest = max(columns.values()) * 4 * 128 * 16
    return tokens * config.hidden_size * 4 + layer + weights + largest


def collect(
    tensors: UnquantisedTensors, pieces: Sequence[Ids], writer: StatisticsWriter, threads: int
) -> Iterator[CalibrationAdvanced]:
    """Write the statistics of all inputs that `writer` has not finished.

    The residual stream behind each layer is kept in the writer's partial folder until the next layer is done, so that a
    resumed pass begins with the first layer that is not finished.

    Args:
        tensors: the unquantised model.
        pieces: token ids of each piece of text.
        writer: has begun.
        threads: threads that compute.

    Raises:
        NotEnoughMemoryError: there is not enough memory.
        DiskFullError: the disk is full.
        CheckpointError: the checkpoint is damaged.
        NonFiniteLogitsError: the model computed NaN or infinity.
    """
    config = tensors.config
    runner = LayerRunner(pieces, threads)
    require_memory(required_memory(config, runner.tokens), "the calibration", "calibrate with fewer tokens")
    kept = _KeptResidual(writer.partial, (runner.tokens, config.hidden_size))
    first = next((n for n in range(config.num_layers) if not _done(writer, n)), config.num_layers)
    first, residual = kept.latest(first)
    if residual is None:
        first, residual = 0, tensors.embed(np.concatenate(pieces))
    weights = _layer_bytes(config)
    total = weights * config.num_layers
    for layer in range(first, config.num_layers):
        done = weights * layer
        yield CalibrationAdvanced(done, total)
        columns = input_columns(config)
        sums = {kind: MomentSums(columns[f"model.layers.{layer}.{kind}"]) for kind in KINDS}

        def observe(_place: slice, inputs: Inputs, sums: dict[str, MomentSums] = sums) -> None:
            for kind, each in sums.items():
                each.add(inputs[kind])

        for tokens in runner.run(tensors, layer, residual, observe):
            yield CalibrationAdvanced(done + weights * tokens // runner.tokens, total)
        kept.store(layer + 1, residual)
        for kind in KINDS:
            writer.write(f"model.layers.{layer}.{kind}", sums.pop(kind).means())
        kept.drop(layer)
    if HEAD_INPUT not in writer.finished:
        writer.write(HEAD_INPUT, _head_sums(tensors, residual).means())
    yield CalibrationAdvanced(total, total)


def _done(writer: StatisticsWriter, layer: int) -> bool:
    return all(f"model.layers.{layer}.{kind}" in writer.finished for kind in KINDS)


def _head_sums(tensors: UnquantisedTensors, residual: Rows) -> MomentSums:
    sums = MomentSums(residual.shape[1])
    weight = tensors.tensor("model.norm.weight").parts["values"]
    for start in range(0, len(residual), _ROWS):
        sums.add(rms_norm(residual[start : start + _ROWS], weight, tensors.config.rms_norm_eps))
    return sums


def _elements(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _layer_bytes(config: ModelConfig) -> int:
    """Return the bytes of a layer in 16 bits, the unit of progress."""
    return sum(2 * _elements(shape) for name, shape in expected_tensors(config).items() if ".layers.0." in name)


class _KeptResidual:
    """Residual streams in files `residual-N`, before layer N, each with its SHA-256.

    Args:
        folder: folder of the files.
        shape: (tokens, hidden).
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self._folder, self._shape = folder, shape

    def _path(self, layer: int) -> Path:
        return self._folder / f"residual-{layer}"

    def store(self, layer: int, residual: Rows) -> None:
        """Write the stream before layer number `layer`. Raises DiskFullError."""
        data = residual.reshape(-1).view(np.uint8).data
        check_free_space(self._folder, len(data), 0, "the residual stream")
        with translate_os_errors(self._path(layer)), atomic_write(self._path(layer), temporary_path=self._new) as file:
            file.write(data)
            file.write(hashlib.sha256(data).digest())

    def drop(self, layer: int) -> None:
        """Delete the stream before layer number `layer`."""
        self._path(layer).unlink(missing_ok=True)

    def latest(self, layer: int) -> tuple[int, Rows | None]:
        """Return the stream before layer number `layer`, or before the last one below it that is intact.

        Returns:
            The number of its layer and the stream, or (0, None).
        """
        for number in range(layer, 0, -1):
            stream = self._read(number)
            if stream is not None:
                return number, stream
        return 0, None

    @property
    def _new(self) -> Path:
        return self._folder / "residual.new"

    def _read(self, layer: int) -> Rows | None:
        count = self._shape[0] * self._shape[1]
        try:
            data = self._path(layer).read_bytes() if self._size(layer) == count * 4 + 32 else b""
        except OSError:
            return None
        if hashlib.sha256(memoryview(data)[:-32]).digest() != data[-32:]:
            return None
        return np.frombuffer(data, np.float32, count).reshape(self._shape).copy()

    def _size(self, layer: int) -> int:
        return self._path(layer).stat().st_size
