"""Passes over tokens on the device: decode passes as graphs, prefill passes layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qwchat.cuda.device import OpenGpu
from qwchat.cuda.device_logits import PassLogits
from qwchat.cuda.graph import Graphs
from qwchat.cuda.kv_cache import CudaCache
from qwchat.cuda.launch import Launch, Step, after_copy, run_all
from qwchat.cuda.memory import Stream
from qwchat.cuda.prefill_stages import PrefillStages
from qwchat.cuda.stages import DecodeStages
from qwchat.cuda.workspace import CudaWorkspace
from qwchat.model.decoder import CancelCheck, PassCancelled
from qwchat.model.gpu_memory import DECODE_ROWS

Key = tuple[object, ...]


class Passes:
    """Runs passes on a stream, one at a time, and waits for each.

    Args:
        gpu: the device.
        stream: the stream.
        space: buffers.
        decode: launches of passes of up to DECODE_ROWS tokens.
        prefill: launches of longer passes.

    Attributes:
        stream: the stream.
        decode: launches of passes of up to DECODE_ROWS tokens.
    """

    def __init__(
        self, gpu: OpenGpu, stream: Stream, space: CudaWorkspace, decode: DecodeStages, prefill: PrefillStages
    ) -> None:
        self._driver, self._gpu, self.stream, self._space = gpu.driver, gpu, stream, space
        self.decode, self._prefill, self._graphs = decode, prefill, Graphs(gpu)
        self._events = [self._new_event() for _ in range(2)]
        self._busy, self._number = False, 0

    def _new_event(self) -> int:
        event = self._driver.create_event()
        self._gpu.on_close(partial(self._driver.destroy_event, event))
        return event

    def begin(self) -> None:
        """Let this thread use the device, and wait for a pass that was interrupted."""
        self._gpu.activate()
        if self._busy:
            self._wait()

    def forget(self, cache_number: int) -> None:
        """Destroy the graphs of a cache."""
        self._graphs.remove(lambda key: key[0] == cache_number)

    def embed(self, tokens: int) -> None:
        """Copy the embeddings of `tokens` ids to the host's copy of the residual stream."""
        copies = self._space.input_copy(tokens), self._space.residual_copy(tokens, to_device=False)
        self._start(tokens, 0, tokens)
        self._do([copies[0], *after_copy(self.decode.embed(tokens)), copies[1]])
        self._wait()

    def run(self, tokens: int, position: int, cache: CudaCache, layers: range, rows: int, *, largest: bool) -> None:
        """Run up to DECODE_ROWS tokens of `ids` through all layers, and the last `rows` of them through the head.

        The host gets the rows of logits, or the largest of each if `largest` is true.
        """

        def steps() -> Iterator[Step]:
            yield self._space.input_copy(tokens)
            parts = (self.decode.layer(layer, tokens, cache) for layer in layers)
            yield from after_copy(itertools.chain(self.decode.embed(tokens), *parts, self._head(rows)))
            yield from self._results(rows, largest)

        self._start(tokens, position, tokens - rows)
        self._replay((cache.number, "run", tokens, rows, largest), steps)

    def run_layers(self, tokens: int, position: int, cache: CudaCache, layers: range) -> None:
        """Run up to DECODE_ROWS rows of the host's copy of the residual stream through some layers, in place."""

        def steps() -> Iterator[Step]:
            yield self._space.input_copy(0)
            yield self._space.residual_copy(tokens, to_device=True)
            yield from after_copy(step for layer in layers for step in self.decode.layer(layer, tokens, cache))
            yield self._space.residual_copy(tokens, to_device=False)

        self._start(tokens, position, tokens)
        self._replay((cache.number, "layers", tokens, layers), steps)

    def head(self, tokens: int, logits_from: int, rows: int, *, largest: bool, upload: bool) -> None:
        """Compute logits of `rows` rows of the residual stream, which has `tokens`, from `logits_from` on.

        With `upload`, the stream is copied from the host first.
        """

        def steps() -> Iterator[Step]:
            yield self._space.input_copy(0)
            if upload:
                yield self._space.residual_copy(tokens, to_device=True)
            yield from after_copy(self._head(rows))
            yield from self._results(rows, largest)

        self._start(tokens, 0, logits_from)
        self._replay(("", "head", tokens if upload else 0, rows, largest), steps)

    def prefill(
        self,
        tokens: int,
        position: int,
        cache: CudaCache,
        layers: range,
        cancelled: CancelCheck | None,
        *,
        from_residual: bool,
    ) -> None:
        """Run any number of tokens through some layers; the residual stream stays on the device.

        Two layers are under way at a time, so that the device always has work, and `cancelled` is asked for each.

        Args:
            tokens: number of tokens, whose ids or residual stream the host's copies hold.
            position: position of the first.
            cache: takes keys and values.
            layers: the layers.
            cancelled: ends the pass early if it returns True.
            from_residual: begin with the residual stream instead of the ids.

        Raises:
            PassCancelled: `cancelled` returned True.
        """
        self._start(tokens, position, tokens)
        if from_residual:
            self._do([self._space.input_copy(0), self._space.residual_copy(tokens, to_device=True)])
        else:
            self._do([self._space.input_copy(tokens), *after_copy(self.decode.embed(tokens))])
        for index, layer in enumerate(layers):
            if cancelled is not None and cancelled():
                self._wait()
                raise PassCancelled
            self._do(list(self._prefill.layer(layer, tokens, cache)))
            self._driver.record_event(self._events[index % 2], self.stream.handle)
            if index:
                self._driver.synchronise_event(self._events[(index - 1) % 2])
        self._wait()

    def download_residual(self, tokens: int) -> NDArray[np.float32]:
        """Return the residual stream (tokens, hidden) f32, a view that the next pass overwrites."""
        self._start(tokens, 0, tokens)
        self._do([self._space.residual_copy(tokens, to_device=False)])
        self._wait()
        return self._space.residual[:tokens]

    def logits(self, rows: int) -> PassLogits:
        """Return the logits of the last pass, which stay on the device; it found the largest of each row."""
        return PassLogits(self._space, rows, partial(self._fetch_logits, rows, self._number))

    def _fetch_logits(self, rows: int, number: int) -> None:
        """Copy `rows` rows of logits of pass `number` to the host. Raises RuntimeError if it is not the last pass."""
        if number != self._number:
            raise RuntimeError("the logits were overwritten by a later pass")
        self.begin()
        self._do([self._space.logits_copy(rows)])
        self._wait()

    def _head(self, rows: int) -> Iterator[Launch]:
        return iter(self.decode.head(rows) if rows else ())

    def _results(self, rows: int, largest: bool) -> Iterator[Step]:
        if rows and largest:
            yield self.decode.candidates(rows)
            yield self._space.candidates_copy()
        elif rows:
            yield self._space.logits_copy(rows)

    def _start(self, tokens: int, position: int, logits_from: int) -> None:
        self._space.step[:3] = tokens, position, logits_from
        self._number += 1

    def _do(self, steps: Sequence[Step]) -> None:
        self._busy = True
        run_all(steps, self._driver, self.stream.handle)

    def _replay(self, key: Key, steps: Callable[[], Iterable[Step]]) -> None:
        """Run the graph of `key`, made of `steps` the first time, and wait for it."""
        self._busy = True
        self._graphs.run(key, steps, self.stream)
        self._wait()

    def _wait(self) -> None:
        self.stream.synchronise()
        self._busy = False


def groups(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of groups of up to DECODE_ROWS tokens."""
    for first in range(start, stop, DECODE_ROWS):
        yield first, min(DECODE_ROWS, stop - first)
