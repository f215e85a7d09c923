"""Encode the tensors of a conversion in parallel, several chunks of rows at a time, and write them in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from quant.calibration import Calibration
from quant.chunk_encoder import EncodedChunk, encode_chunk
from quant.conversion_events import (
    ConversionAdvanced,
    ConversionEvent,
    ConversionNotice,
    TensorFinished,
    TensorStarted,
)
from quant.conversion_work import Work
from quant.formats.format import TILE_ROWS
from quant.input_factors import InputFactors
from quant.policy import TensorPlan
from quant.sources import Source
from quant.writer import ModelWriter

CHUNK_WEIGHTS = 4 << 20
FEEDBACK_CHUNK_WEIGHTS = 2 << 20
_HEARTBEAT_SECONDS = 0.25  # between events while waiting for the next rows


@dataclass
class _TensorProgress:
    """Error sums of the rows of one tensor that have been written so far."""

    squared_errors: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def add(self, chunk: EncodedChunk) -> None:
        """Add the rows of a chunk."""
        self.squared_errors += chunk.squared_errors.tolist()
        self.squares += chunk.squares.tolist()

    def relative_error(self) -> float:
        """Return sqrt(sum of squared errors / sum of squares), rounded to 6 significant digits.

        `math.fsum` is exact, so the result does not depend on how the rows were split into chunks.
        """
        total = math.fsum(self.squares)
        ratio = math.sqrt(math.fsum(self.squared_errors) / total) if total else 0.0
        return float(f"{ratio:.6g}")


@dataclass(frozen=True)
class _Job:
    """Rows of a tensor that are being encoded."""

    tensor: TensorPlan
    start: int
    stop: int
    chunk: Future[EncodedChunk]


class _Queue:
    """Jobs in the order of the tensors, one more than threads, so that no thread waits for the writer.

    Args:
        source: where rows are read.
        tensors: plans of the tensors that are not written yet, in order.
        threads: number of encoding threads.
        factors: factors of the inputs, with a calibration.
    """

    def __init__(
        self, source: Source, tensors: Sequence[TensorPlan], threads: int, factors: InputFactors | None
    ) -> None:
        self._source, self._threads, self._factors = source, threads, factors
        weights = CHUNK_WEIGHTS if factors is None else FEEDBACK_CHUNK_WEIGHTS
        self._rows = ((tensor, *rows) for tensor in tensors for rows in _chunks(tensor, weights))
        self._upcoming = next(self._rows, None)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="quantise")
        self.jobs: deque[_Job] = deque()

    def fill(self, *, idle: bool) -> None:
        """Submit jobs. `idle` means that every chunk taken from the queue has been written."""
        while self._upcoming is not None and len(self.jobs) <= self._threads:
            tensor, start, stop = self._upcoming
            future = None
            if self._factors is not None:
                if self._factors.waits(tensor) and (self.jobs or not idle):
                    return
                future = self._factors.request(tensor, self._pool)
            chunk = self._pool.submit(encode_chunk, self._source, tensor, start, stop, future)
            self.jobs.append(_Job(tensor, start, stop, chunk))
            self._upcoming = next(self._rows, None)

    def close(self) -> None:
        """Drop the jobs that have not begun and wait for the others."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def write_tensors(
    source: Source, plans: list[TensorPlan], writer: ModelWriter, threads: int, calibration: Calibration | None = None
) -> Iterator[ConversionEvent]:
    """Quantise all unfinished tensors, several chunks at a time, and write them in order.

    The order is that of the source's files, since sources that fetch ahead depend on it; with a calibration, it is that
    of the modules, so that matrices with the same input follow each other.
    """
    remaining = [plan for plan in plans if plan.name not in writer.finished]
    factors = None
    if calibration is None:
        order = {name: place for place, name in enumerate(source.tensors)}
        remaining.sort(key=lambda plan: order[plan.name])
    else:
        factors = InputFactors(calibration, source.config, threads)
    work = Work(plans, None if calibration is None else source.config)
    work.add(plan for plan in plans if plan.name in writer.finished)
    if work.bytes_done:
        yield ConversionAdvanced(work.bytes_done)
    source.announce([plan.name for plan in remaining])
    written = _Written(plans, writer, calibration)
    queue = _Queue(source, remaining, threads, factors)
    progress: _TensorProgress | None = None
    try:
        written.report()
        queue.fill(idle=True)
        while queue.jobs:
            job = queue.jobs.popleft()
            while not wait((job.chunk,), _HEARTBEAT_SECONDS).done:
                yield ConversionAdvanced(work.bytes_done)
            chunk, tensor = job.chunk.result(), job.tensor
            queue.fill(idle=False)
            while factors is not None and factors.notices:
                yield ConversionNotice(factors.notices.pop(0))
            if progress is None:
                progress = _TensorProgress()
                yield TensorStarted(tensor.name, tensor.format)
            writer.write(tensor.name, chunk.packed.parts, job.start // TILE_ROWS)
            source.release(tensor.name, job.start, job.stop)
            progress.add(chunk)
            work.add([tensor], job.stop - job.start)
            if job.stop == tensor.shape[0]:
                error = progress.relative_error()
                writer.finish(tensor.name, error)
                written.report()
                source.discard(tensor.name)
                progress = None
                yield TensorFinished(tensor.name, tensor.format, error)
            queue.fill(idle=True)
            yield ConversionAdvanced(work.bytes_done)
    except BaseException:
        source.interrupt()
        raise
    finally:
        queue.close()


class _Written:
    """Reports the tensors that have been written to a calibration that needs them, in module order."""

    def __init__(self, plans: list[TensorPlan], writer: ModelWriter, calibration: Calibration | None) -> None:
        self._writer, self._calibration = writer, calibration
        self._unreported = deque(plan.name for plan in plans)

    def report(self) -> None:
        """Report the tensors that have been written since the last call."""
        if self._calibration is None or not self._calibration.ordered:
            return
        while self._unreported and self._unreported[0] in self._writer.finished:
            name = self._unreported.popleft()
            self._calibration.finished(name, self._writer.read(name))


def _chunks(tensor: TensorPlan, weights: int) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about so many weights in multiples of 16 rows. A vector is one chunk."""
    rows = tensor.shape[0]
    size = rows if len(tensor.shape) == 1 else max(TILE_ROWS, weights // tensor.shape[1] // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, size):
        yield start, min(start + size, rows)
