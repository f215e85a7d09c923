"""Export pipeline: model folder -> exporter -> files, in chunks of rows, reported as events.

Python threads encode chunks in parallel, and the caller's thread writes them in order. Peak memory is a few chunks,
independent of the size of the model. The result depends only on the model and the arguments, not on the number of
threads or on where an earlier attempt stopped. Every tensor is compared with its checksum while it is read.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quant.container import ModelFolder, combine_digests
from quant.errors import ContainerError, FormatError
from quant.exporters.export_events import ExportAdvanced, ExportEvent
from quant.exporters.export_plan import EncodedRows, ExportPlan, TensorExport
from quant.exporters.export_writer import ExportWriter
from quant.formats import PackedTensor, dequantise
from quant.formats.format import TILE_ROWS
from quant.sources.source import Rows

CHUNK_WEIGHTS = 2 << 20


@dataclass(frozen=True)
class _Chunk:
    """Encoded rows, the packed rows that they come from, and the sums of their error."""

    rows: PackedTensor
    encoded: EncodedRows
    squared_error: float
    square: float


@dataclass
class _Progress:
    """Error sums and digests of the rows of one tensor that have been written so far."""

    squared_errors: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    digests: dict[str, Any] = field(default_factory=dict)

    def add(self, chunk: _Chunk) -> None:
        self.squared_errors.append(chunk.squared_error)
        self.squares.append(chunk.square)
        for name, part in chunk.rows.parts.items():
            self.digests.setdefault(name, hashlib.sha256()).update(part.reshape(-1).view(np.uint8).data)

    def relative_error(self) -> float:
        """Return sqrt(sum of squared errors / sum of squares), rounded to 6 significant digits."""
        total = math.fsum(self.squares)
        return float(f"{math.sqrt(math.fsum(self.squared_errors) / total):.6g}") if total else 0.0


def write_files(model: ModelFolder, plan: ExportPlan, writer: ExportWriter, threads: int) -> Iterator[ExportEvent]:
    """Write all weight files that are not finished.

    Raises:
        ContainerError: a tensor does not match its checksum.
        FormatError: the target cannot hold a value.
    """
    done = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="export")
    try:
        for file in plan.weights:
            if file.name in writer.finished:
                done += sum(model.tensor(tensor.name).nbytes for tensor in file.tensors)
                yield ExportAdvanced(done, file.name)
                continue
            writer.open(file)
            errors = {}
            progress = _Progress()
            for tensor, stop, chunk in _encoded(model, file.tensors, pool, threads):
                entries = [entry for entry in tensor.entries if entry.constant is None]
                for entry, part in zip(entries, chunk.encoded.parts, strict=True):
                    writer.write(entry.name, part)
                progress.add(chunk)
                done += chunk.rows.nbytes
                if stop == tensor.shape[0]:
                    _check_digests(model, tensor, progress)
                    errors[tensor.name] = progress.relative_error()
                    progress = _Progress()
                yield ExportAdvanced(done, tensor.name)
            writer.finish(file, errors)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def row_ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about 2 Mi weights in multiples of 16 rows. A vector is one range."""
    rows = shape[0]
    size = rows if len(shape) == 1 else max(TILE_ROWS, CHUNK_WEIGHTS // shape[1] // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def rows_of(packed: PackedTensor, start: int, stop: int) -> PackedTensor:
    """Return rows `start`, a multiple of 16, to `stop`, exclusive, as views. A vector is returned whole."""
    if len(packed.shape) == 1:
        return packed
    first, last = start // TILE_ROWS, -(-stop // TILE_ROWS)
    parts = {name: part[first:last] for name, part in packed.parts.items()}
    return PackedTensor(packed.format, (stop - start, packed.shape[1]), packed.group_size, parts)


def _encoded(
    model: ModelFolder, tensors: tuple[TensorExport, ...], pool: ThreadPoolExecutor, threads: int
) -> Iterator[tuple[TensorExport, int, _Chunk]]:
    """Yield the chunks of all tensors in order, with the row at which each ends."""
    jobs = ((tensor, start, stop) for tensor in tensors for start, stop in row_ranges(tensor.shape))
    pending: deque[tuple[TensorExport, int, Future[_Chunk]]] = deque()

    def submit() -> None:
        if (job := next(jobs, None)) is not None:
            tensor, start, stop = job
            pending.append((tensor, stop, pool.submit(_encode, tensor, model.tensor(tensor.name), start, stop)))

    for _ in range(threads + 1):  # one job more than threads, so that no thread waits for the writer
        submit()
    while pending:
        tensor, stop, future = pending.popleft()
        chunk = future.result()
        submit()
        yield tensor, stop, chunk


def _encode(tensor: TensorExport, packed: PackedTensor, start: int, stop: int) -> _Chunk:
    rows = rows_of(packed, start, stop)
    try:
        encoded = tensor.encode(rows)
    except FormatError as exc:
        raise FormatError(f"tensor {tensor.name} cannot be exported: {exc}") from exc
    if encoded.values is None:
        return _Chunk(rows, encoded, 0.0, 0.0)
    values = dequantise(rows)
    return _Chunk(rows, encoded, _sum_of_squares(values - encoded.values), _sum_of_squares(values))


def _sum_of_squares(values: Rows) -> float:
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def _check_digests(model: ModelFolder, tensor: TensorExport, progress: _Progress) -> None:
    entry = model.manifest["tensors"][tensor.name]
    digests = [progress.digests[part].digest() for part in entry["parts"]]
    if combine_digests(digests) != entry["sha256"]:
        raise ContainerError(
            f"{model.path}: tensor {tensor.name} does not match its checksum; convert or pull the model again"
        )
