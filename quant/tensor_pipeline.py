"""Encode the tensors of a conversion in parallel, several chunks of rows at a time, and write them in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from quant.chunk_encoder import EncodedChunk, encode_chunk
from quant.conversion_events import ConversionAdvanced, ConversionEvent, TensorFinished, TensorStarted
from quant.formats.format import TILE_ROWS
from quant.policy import TensorPlan
from quant.sources import Source
from quant.writer import ModelWriter

CHUNK_WEIGHTS = 4 << 20
_HEARTBEAT_SECONDS = 0.25  # between events while waiting for the next rows


@dataclass
class _TensorProgress:
    """Error sums of the rows of one tensor that have been written so far."""

    squared_errors: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def relative_error(self) -> float:
        """Return sqrt(sum of squared errors / sum of squares), rounded to 6 significant digits.

        `math.fsum` is exact, so the result does not depend on how the rows were split into chunks.
        """
        total = math.fsum(self.squares)
        ratio = math.sqrt(math.fsum(self.squared_errors) / total) if total else 0.0
        return float(f"{ratio:.6g}")


def write_tensors(
    source: Source, plans: list[TensorPlan], writer: ModelWriter, threads: int
) -> Iterator[ConversionEvent]:
    """Quantise all unfinished tensors, several chunks at a time, and write them in order."""
    done = sum(p.source_bytes for p in plans if p.name in writer.finished)
    if done:
        yield ConversionAdvanced(done)
    # Keep the order of the files: sources that fetch ahead depend on it.
    order = {name: place for place, name in enumerate(source.tensors)}
    remaining = sorted((p for p in plans if p.name not in writer.finished), key=lambda p: order[p.name])
    source.announce([p.name for p in remaining])
    jobs = ((p, start, stop) for p in remaining for start, stop in _chunks(p))
    pending: deque[tuple[TensorPlan, int, int, Future[EncodedChunk]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="quantise")
    progress: _TensorProgress | None = None
    try:
        for _ in range(threads + 1):  # one job more than threads, so that no thread waits for the writer
            _submit_next(pool, source, jobs, pending)
        while pending:
            tensor, start, stop, future = pending.popleft()
            while not wait((future,), _HEARTBEAT_SECONDS).done:
                yield ConversionAdvanced(done)
            chunk = future.result()
            _submit_next(pool, source, jobs, pending)
            if progress is None:
                progress = _TensorProgress()
                yield TensorStarted(tensor.name, tensor.format)
            writer.write(tensor.name, chunk.packed.parts, start // TILE_ROWS)
            source.release(tensor.name, start, stop)
            progress.squared_errors += chunk.squared_errors.tolist()
            progress.squares += chunk.squares.tolist()
            done += tensor.source_bytes * (stop - start) // tensor.shape[0]
            if stop == tensor.shape[0]:
                error = progress.relative_error()
                writer.finish(tensor.name, error)
                source.discard(tensor.name)
                progress = None
                yield TensorFinished(tensor.name, tensor.format, error)
            yield ConversionAdvanced(done)
    except BaseException:
        source.interrupt()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit_next(
    pool: ThreadPoolExecutor,
    source: Source,
    jobs: Iterator[tuple[TensorPlan, int, int]],
    pending: deque[tuple[TensorPlan, int, int, Future[EncodedChunk]]],
) -> None:
    job = next(jobs, None)
    if job is not None:
        pending.append((*job, pool.submit(encode_chunk, source, *job)))


def _chunks(tensor: TensorPlan) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about 4 Mi weights in multiples of 16 rows. A vector is one chunk."""
    rows = tensor.shape[0]
    size = rows if len(tensor.shape) == 1 else max(TILE_ROWS, CHUNK_WEIGHTS // tensor.shape[1] // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, size):
        yield start, min(start + size, rows)
