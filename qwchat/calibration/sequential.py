"""Calibration during a conversion: each matrix is fitted to inputs that come from the matrices quantised before it.

Two residual streams go through the model: that of the unquantised model, and that of the model as far as it has been
quantised. Before a matrix is quantised, its inputs in both are summed: the moments are those of the quantised stream,
and the cross moments tell the encoder which outputs the unquantised model would have had. Inside a layer, the matrices
that are quantised already are used as well, so that each kind of input is summed in a run of its own. Such a run leaves
out the matrices behind that input: they are replaced by zeros of one tile.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.calibration import InputMoments, input_columns, input_of
from quant.calibration.moments import HEAD_INPUT
from quant.families import expected_tensors, family_of
from quant.formats import PackedTensor, dequantise_rows, find_format
from quant.model_config import ModelConfig
from qwchat.calibration.folder_tensors import UnquantisedTensors
from qwchat.calibration.layer_runner import Inputs, LayerRunner, rms_norm
from qwchat.calibration.moment_sums import MomentSums, moment_bytes
from qwchat.calibration.windows_of_text import Ids, tokens_digest
from qwchat.cpu.memory import require_memory
from qwchat.model.tensor_source import TensorSource

Rows = NDArray[np.float32]

_VERSION = 1
_ROWS = 1024  # of the residual streams that are normed together
_TILE = 16  # rows


class SequentialCalibration:
    """Moments for a conversion that quantises the tensors in module order. It implements `Calibration`.

    Args:
        tensors: the unquantised model.
        pieces: token ids of each piece of text.
        threads: threads that compute.

    Raises:
        NotEnoughMemoryError: there is not enough memory.
    """

    ordered = True

    def __init__(self, tensors: UnquantisedTensors, pieces: Sequence[Ids], threads: int) -> None:
        self._tensors, self._runner = tensors, LayerRunner(pieces, threads)
        needed = required_memory(tensors.config, self._runner.tokens)
        require_memory(needed, "the sequential calibration", "calibrate with a file of statistics")
        self._ids = np.concatenate(pieces)
        self._digest = tokens_digest(pieces)
        self._family = family_of(tensors.config)
        self._columns = input_columns(tensors.config)
        self._lock = threading.Lock()
        self._packed: dict[str, PackedTensor] = {}  # of the layers from `_layer` on, and of the embedding
        self._layer = 0  # Both streams are those before this layer, except that
        self._float_ahead = False  # the unquantised one may be behind it already.
        self._float: Rows | None = None
        self._quantised: Rows | None = None
        self._last: tuple[str, InputMoments] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the token ids and of this method."""
        return hashlib.sha256(f"sequential {_VERSION} {self._digest}".encode()).hexdigest()

    def moments(self, tensor: str) -> InputMoments | None:
        """Return the moments of the input of matrix `tensor`; see `Calibration.moments`.

        Raises:
            NonFiniteLogitsError: a layer computed NaN or infinity.
        """
        name = input_of(tensor, self._tensors.config)
        if name is None:
            return None
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None  # Frees the memory before the next sums are made.
                self._last = name, self._sum(tensor, name)
            return self._last[1]

    def finished(self, tensor: str, packed: PackedTensor) -> None:
        """Use `packed` in the quantised stream from now on."""
        with self._lock:
            self._packed[tensor] = packed

    def _sum(self, tensor: str, name: str) -> InputMoments:
        if tensor == self._family.embedding_name:
            return self._tied_head()
        if name == HEAD_INPUT:
            self._advance(self._tensors.config.num_layers)
            return self._normed(name, "model.norm.weight")
        layer = self._family.layer_of(tensor)
        assert layer is not None
        self._advance(layer)
        kind = name.rpartition(".")[2]
        if kind == "input":
            return self._normed(name, f"model.layers.{layer}.input_layernorm.weight")
        return self._observed(name, kind)

    def _tied_head(self) -> InputMoments:
        """Return the moments of the head of a tied model, which is quantised before anything else.

        They are those of the unquantised model, since the quantised stream begins later.
        """
        stream = self._tensors.embed(self._ids)
        for layer in range(self._tensors.config.num_layers):
            for _ in self._runner.run(self._tensors, layer, stream):
                pass
        sums = MomentSums(stream.shape[1])
        for start in range(0, len(stream), _ROWS):
            sums.add(self._norm(stream[start : start + _ROWS], "model.norm.weight"))
        return InputMoments(sums.means(), sums.samples)

    def _start(self) -> tuple[Rows, Rows]:
        """Return both streams before the first layer."""
        embedding = self._packed.pop(self._family.embedding_name, None)
        if embedding is None:
            raise ValueError("the embedding is not finished: ask for moments in module order")
        return self._tensors.embed(self._ids), dequantise_rows(embedding, self._ids)

    def _advance(self, layer: int) -> None:
        """Run both streams through the finished layers up to the one before `layer`."""
        if self._float is None or self._quantised is None:
            self._float, self._quantised = self._start()
        while self._layer < layer:
            if not self._float_ahead:
                for _ in self._runner.run(self._tensors, self._layer, self._float):
                    pass
            for _ in self._runner.run(self._quantised_tensors(()), self._layer, self._quantised):
                pass
            prefix = f"{self._family.layer_prefix}{self._layer}."
            self._packed = {name: each for name, each in self._packed.items() if not name.startswith(prefix)}
            self._layer, self._float_ahead = self._layer + 1, False

    def _normed(self, name: str, norm: str) -> InputMoments:
        """Return the moments of an input that is the norm of the residual stream."""
        assert self._float is not None
        assert self._quantised is not None
        sums = MomentSums(self._columns[name], with_cross=True)
        for start in range(0, len(self._float), _ROWS):
            place = slice(start, start + _ROWS)
            sums.add(self._norm(self._quantised[place], norm), self._norm(self._float[place], norm))
        return InputMoments(sums.means(), sums.samples, sums.cross_means())

    def _observed(self, name: str, kind: str) -> InputMoments:
        """Return the moments of an input inside the current layer, by a run of both streams up to it."""
        assert self._float is not None
        assert self._quantised is not None
        sums = MomentSums(self._columns[name], with_cross=True)
        seen: dict[str, Rows] = {}

        def observe_float(_: slice, inputs: Inputs) -> None:
            seen["float"] = inputs[kind]

        def observe_quantised(_: slice, inputs: Inputs) -> None:
            sums.add(inputs[kind], seen["float"])

        behind = matrices_behind(kind, self._tensors.config, self._layer)
        # The last input needs the whole layer but `down_proj`: the unquantised stream then goes through all of it.
        whole = kind == "activation"
        unquantised = self._tensors if whole else _Replaced(self._tensors, {}, behind)
        runs = zip(
            self._runner.run(unquantised, self._layer, self._float, observe_float, keep=not whole),
            self._runner.run(
                self._quantised_tensors(behind), self._layer, self._quantised, observe_quantised, keep=True
            ),
            strict=True,
        )
        for _ in runs:
            pass
        self._float_ahead = whole
        return InputMoments(sums.means(), sums.samples, sums.cross_means())

    def _quantised_tensors(self, omitted: Collection[str]) -> TensorSource:
        """Return the current layer with its finished tensors; all but those to be omitted must be finished."""
        prefix = f"{self._family.layer_prefix}{self._layer}."
        missing = [
            name
            for name, shape in expected_tensors(self._tensors.config).items()
            if name.startswith(prefix) and len(shape) == 2 and name not in self._packed and name not in omitted
        ]
        if missing:
            raise ValueError(f"{missing[0]} is not finished: ask for moments in module order")
        return _Replaced(self._tensors, self._packed, omitted)

    def _norm(self, x: Rows, name: str) -> Rows:
        return rms_norm(x, self._tensors.tensor(name).parts["values"], self._tensors.config.rms_norm_eps)


def required_memory(config: ModelConfig, tokens: int) -> int:
    """Return the bytes that both streams, the sums of the widest input, and a layer in float32 need."""
    shapes = [shape for name, shape in expected_tensors(config).items() if ".layers.0." in name]
    weights = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes)
    widest = max(input_columns(config).values())
    return 2 * tokens * config.hidden_size * 4 + moment_bytes(widest, with_cross=True) + weights


def matrices_behind(kind: str, config: ModelConfig, layer: int) -> list[str]:
    """Return the matrices of a layer that its input `kind` does not depend on, in module order."""
    family = family_of(config)
    prefix = f"{family.layer_prefix}{layer}."
    kinds = list(dict.fromkeys(family.input_kinds.values()))
    later = kinds[kinds.index(kind) :]
    return [prefix + suffix for suffix, each in family.input_kinds.items() if each in later]


class _Replaced:
    """Tensors of which some are replaced, and some are zeros of one tile, which add nothing to any stream.

    Args:
        tensors: all tensors.
        packed: tensors to use instead.
        omitted: matrices that are not needed.
    """

    def __init__(self, tensors: TensorSource, packed: Mapping[str, PackedTensor], omitted: Collection[str]) -> None:
        self._tensors, self._packed, self._omitted = tensors, packed, omitted
        self._shapes = expected_tensors(tensors.config)

    @property
    def path(self) -> Path:
        return self._tensors.path

    @property
    def config(self) -> ModelConfig:
        return self._tensors.config

    def tensor(self, name: str) -> PackedTensor:
        if name in self._omitted:
            shape = (_TILE, self._shapes[name][1])
            layout = find_format("f32").layout(shape)
            return PackedTensor(
                "f32", shape, 0, {part: np.zeros(size, dtype) for part, (dtype, size) in layout.items()}
            )
        return self._packed[name] if name in self._packed else self._tensors.tensor(name)
