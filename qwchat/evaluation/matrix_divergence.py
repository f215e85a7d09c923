"""How much each matrix contributes to the error of a conversion: the model with one matrix quantised at a time.

The unquantised model runs layer by layer. At each layer, every candidate (a matrix in a format) gets a residual stream
of its own, which differs from that of the model from this layer on; the candidates of a layer run through the layers
behind it together. Candidates of layer i cost num_layers - i passes through one layer each, instead of a whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quant.families import expected_tensors
from quant.formats import PackedTensor
from quant.model_config import ModelConfig
from qwchat.calibration.source_tensors import EMBEDDING, SourceTensors
from qwchat.calibration.streamed_model import Head, Residual, open_head, open_layer
from qwchat.cpu.decoder import CpuDecoder
from qwchat.errors import NonFiniteLogitsError
from qwchat.evaluation.check_texts import EncodedTexts
from qwchat.evaluation.comparison import score

HEAD = "lm_head.weight"
_DIGITS = 6
Unit = Literal["tensor", "layer"]
Measurement = tuple[str, str, float]
"""(name of a matrix, format, mean KL divergence in nats)."""


@dataclass(frozen=True)
class Step:
    """Matrices that are measured together: the embedding, those of one layer, or the head.

    Attributes:
        layer: number of the layer; -1 for the embedding, the number of layers for the head.
        groups: names of the matrices that are quantised at the same time, usually one each.
    """

    layer: int
    groups: tuple[tuple[str, ...], ...]


def plan_steps(config: ModelConfig, unit: Unit) -> list[Step]:
    """Return the steps of a measurement in order.

    Args:
        config: the model's shapes.
        unit: whether matrices are changed one by one, or all of a layer together. The divergence of a layer is divided
            among its matrices in proportion to their weights.
    """
    matrices = [name for name, shape in expected_tensors(config).items() if len(shape) == 2]
    steps = [Step(-1, ((EMBEDDING,),))]
    for layer in range(config.num_layers):
        own = tuple(name for name in matrices if name.startswith(f"model.layers.{layer}."))
        steps.append(Step(layer, tuple((name,) for name in own) if unit == "tensor" else (own,)))
    if not config.tie_word_embeddings:
        steps.append(Step(config.num_layers, ((HEAD,),)))
    return steps


def layer_passes(config: ModelConfig, step: Step, formats: int) -> int:
    """Return how many passes of all tokens through one layer a step needs."""
    own = len(step.groups) * formats
    return own * (config.num_layers - max(step.layer, 0))


class MatrixDivergence:
    """Measures the divergence that each matrix causes in each format.

    Args:
        tensors: the unquantised model.
        texts: what is predicted.
        formats: names of the formats to compare.
        threads: threads that compute.
        resident: keep all layers in memory, which is faster, instead of one.
    """

    def __init__(
        self, tensors: SourceTensors, texts: EncodedTexts, formats: Sequence[str], *, threads: int, resident: bool
    ) -> None:
        self._tensors, self._texts, self._formats, self._threads = tensors, texts, tuple(formats), threads
        self._config = tensors.config
        self._context = max(map(len, texts.ids))
        self._whole = self._load_whole() if resident else None
        self._cache = None if self._whole is None else self._whole.make_cache()
        self._base: list[Residual] = []
        self._reference: list[Residual] = []

    def _load_whole(self) -> CpuDecoder:
        return CpuDecoder(self._tensors, context=self._context, threads=self._threads, kv="f32")

    def close(self) -> None:
        """Release the model."""
        if self._whole is not None:
            self._whole.close()

    def prepare(self) -> None:
        """Run the unquantised model to its end. Call this before `measure`."""
        self._base = [self._tensors.embed(ids) for ids in self._texts.ids]
        self._reference = [residual.copy() for residual in self._base]
        self._run([self._reference], range(self._config.num_layers), lambda passes: None)

    def measure(self, step: Step, advance: Callable[[int], None]) -> Iterator[Measurement]:
        """Yield the divergence of each matrix of a step in each format. Steps must be measured in order.

        Args:
            step: a step; a skipped one must be given to `skip`.
            advance: called with numbers of passes through one layer that are done.

        Raises:
            NonFiniteLogitsError: the model computed NaN or infinity.
        """
        candidates = [(group, kind) for group in step.groups for kind in self._formats]
        streams = []
        for group, kind in candidates:
            changed = {name: self._tensors.rounded(name, kind) for name in group}
            streams.append(self._changed_streams(step, changed))
            advance(1 if 0 <= step.layer < self._config.num_layers else 0)
        self._run(streams, range(step.layer + 1, self._config.num_layers), advance)
        heads = self._changed_heads(candidates)
        means = self._divergences(streams, heads)
        for (group, kind), mean in zip(candidates, means, strict=True):
            yield from self._divided(group, kind, mean)
        self.skip(step)

    def skip(self, step: Step) -> None:
        """Move the unquantised model behind a step whose divergences are known."""
        if 0 <= step.layer < self._config.num_layers:
            self._run([self._base], range(step.layer, step.layer + 1), lambda passes: None)

    def _divided(self, group: tuple[str, ...], kind: str, mean: float) -> Iterator[Measurement]:
        shapes = expected_tensors(self._config)
        sizes = [int(np.prod(shapes[name])) for name in group]
        for name, size in zip(group, sizes, strict=True):
            yield name, kind, float(f"{mean * size / sum(sizes):.{_DIGITS}g}")

    def _changed_streams(self, step: Step, changed: dict[str, PackedTensor]) -> list[Residual]:
        """Return the residual stream of each text behind a step whose matrices are changed."""
        tensors = self._tensors.replacing(changed)
        if step.layer < 0:
            return [tensors.embed(ids) for ids in self._texts.ids]
        streams = [residual.copy() for residual in self._base]
        if step.layer < self._config.num_layers:
            with open_layer(tensors, step.layer, context=self._context, threads=self._threads) as run:
                for residual in streams:
                    run(residual)
        return streams

    def _run(self, streams: list[list[Residual]], layers: range, advance: Callable[[int], None]) -> None:
        """Run some layers of the unquantised model on several streams of all texts, in place."""
        if self._whole is not None and layers:
            for stream in streams:
                for residual in stream:
                    self._run_whole(self._whole, residual, layers)
                advance(len(layers))
            return
        for layer in layers:
            with open_layer(self._tensors, layer, context=self._context, threads=self._threads) as run:
                for stream in streams:
                    for residual in stream:
                        run(residual)
                    advance(1)

    def _run_whole(self, whole: CpuDecoder, residual: Residual, layers: range) -> None:
        assert self._cache is not None
        for start in range(0, len(residual), whole.chunk):
            piece = residual[start : start + whole.chunk]
            whole.run_layers(piece, layers.start, layers.stop, start, self._cache)

    def _changed_heads(self, candidates: Sequence[tuple[tuple[str, ...], str]]) -> list[SourceTensors]:
        """Return the tensors that the head of each candidate reads."""
        name = EMBEDDING if self._config.tie_word_embeddings else HEAD
        return [
            self._tensors.replacing({name: self._tensors.rounded(name, kind)}) if name in group else self._tensors
            for group, kind in candidates
        ]

    def _divergences(self, streams: list[list[Residual]], heads: list[SourceTensors]) -> list[float]:
        """Return the mean divergence of each candidate from the unquantised model."""
        sums = np.zeros(len(streams))
        with open_head(self._tensors, threads=self._threads) as reference:
            for number, (stream, tensors) in enumerate(zip(streams, heads, strict=True)):
                if tensors is not self._tensors:
                    with open_head(tensors, threads=self._threads) as changed:
                        sums[number] = self._sum(reference, [(changed, stream)])[0]
            plain = [number for number, tensors in enumerate(heads) if tensors is self._tensors]
            sums[plain] = self._sum(reference, [(reference, streams[number]) for number in plain])
        tokens = sum(len(ids) - 1 for ids in self._texts.ids)
        return [float(value) / tokens for value in sums]

    def _sum(
        self,
        reference: Head,
        candidates: list[tuple[Head, list[Residual]]],
    ) -> NDArray[np.float64]:
        """Return the sum of the divergences of all tokens for each candidate, a head and its streams."""
        sums = np.zeros(len(candidates))
        vocab = self._texts.vocab_size
        for number, ids in enumerate(self._texts.ids):
            for start in range(0, len(ids) - 1, CpuDecoder.chunk):
                stop = min(start + CpuDecoder.chunk, len(ids) - 1)
                expected = reference(self._reference[number][start:stop])[:, :vocab].copy()
                for place, (head, streams) in enumerate(candidates):
                    logits = head(streams[number][start:stop])[:, :vocab]
                    if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
                        raise NonFiniteLogitsError("the model computed NaN or infinity: check the checkpoint's weights")
                    sums[place] += score(logits, ids[start + 1 : stop + 1], expected).divergence.sum()
        return sums
