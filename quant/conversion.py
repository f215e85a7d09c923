"""Conversion pipeline: source -> policy -> quantiser -> model folder, in chunks of rows, reported as events.

Python threads quantise chunks in parallel (the compiled loops release the GIL), and the caller's thread writes them in
order. Peak memory is a few chunks, independent of the size of the model. The result depends only on the source and the
arguments, not on the number of threads or on where an earlier attempt stopped.
"""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.container import open_model
from quant.conversion_events import (
    CompilingQuantiser,
    ConversionAdvanced,
    ConversionEvent,
    ConversionFinished,
    ConversionNotice,
    ConversionPlanned,
    QualityCheckStarted,
    TensorFinished,
    TensorStarted,
    WaitingForCompiler,
)
from quant.destination import check_destination
from quant.errors import ArgumentError, CheckpointError, FormatError, QualityError
from quant.families import parameter_count
from quant.formats import GroupedFormat, PackedTensor, find_format
from quant.formats.format import TILE_ROWS
from quant.machine import usable_processors
from quant.policy import ConversionSpec, TensorPlan, conversion_spec, keep_home, plan_tensors
from quant.quality import Quality
from quant.quantisers import machine_code, quantise
from quant.sources import QuantisedRows, Source, TensorInfo, check_tensors, open_source
from quant.writer import ModelWriter, weights_size

__all__ = [
    "CompilingQuantiser",
    "ConversionAdvanced",
    "ConversionEvent",
    "ConversionFinished",
    "ConversionNotice",
    "ConversionPlanned",
    "QualityCheck",
    "QualityCheckStarted",
    "TensorFinished",
    "TensorStarted",
    "WaitingForCompiler",
    "compiling_cost",
    "convert",
]

_HEARTBEAT_SECONDS = 0.25  # between events while waiting for the next rows
CHUNK_WEIGHTS = 4 << 20
MAX_WEIGHT = np.float32(1e30)

QualityCheck = Callable[[Path], Quality | None]
"""Measures a complete model folder that is not published yet; None if it cannot. Raises QualityError to refuse it."""


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    preset: str | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
    check: QualityCheck | None = None,
) -> Generator[ConversionEvent, None, None]:
    """Convert the checkpoint `source` into the model folder `destination`.

    The work is done while the caller iterates. Closing the iterator stops the conversion and keeps the finished tensors
    for `resume`. After an error, `destination` is as it was before.

    Args:
        source: checkpoint, as for `quant.sources.open_source`.
        destination: model folder to create; its parent folder must exist.
        preset: name of a preset; see `quant.policy`. None: `imported` if the source is quantised, otherwise `q4`.
        bits: bits per weight, as an alternative to `preset`.
        group_size: weights per group, as an alternative to `preset`.
        resume: continue what an earlier attempt left.
        dry_run: stop after `ConversionPlanned` without writing anything.
        force: replace an existing model once the new one is complete.
        threads: number of quantising threads. None: one per processor that this process may use.
        check: compares the complete model with its source before it is published.

    Yields:
        `ConversionPlanned` first, then progress, and `ConversionFinished` last.

    Raises:
        ArgumentError: an argument is invalid, or the destination is in use.
        CheckpointError: the source is missing, damaged, contradicts its config, or has values that are not finite.
        FormatError: the shape of a tensor does not fit its format.
        DiskFullError: the disk of the destination is full.
        QualityError: `check` refused the model, which is deleted.
    """
    if threads is not None and threads < 1:
        raise ArgumentError(f"{threads} threads are not enough; give 1 or more")
    with open_source(source) as opened:
        spec = conversion_spec(preset, bits, group_size, quantised=opened.quantised)
        yield from convert_source(
            opened,
            destination,
            spec,
            resume=resume,
            dry_run=dry_run,
            force=force,
            threads=threads,
            check=check,
        )


def convert_source(
    opened: Source,
    destination: str | Path,
    spec: ConversionSpec,
    *,
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
    check: QualityCheck | None = None,
) -> Generator[ConversionEvent, None, None]:
    """Convert an open source, which stays open. Arguments, events and errors are those of `convert`."""
    began = time.monotonic()
    destination = Path(destination).resolve()
    config = opened.config
    notices = [*check_tensors(opened), *opened.notices]
    files = opened.files
    plans = _plan_conversion(opened, spec)
    bytes_in, bytes_out = sum(p.source_bytes for p in plans), weights_size([_layout_key(p) for p in plans])
    bits_per_weight = 8 * bytes_out / parameter_count(config)
    yield ConversionPlanned(bytes_in, bytes_out, tuple(plans), bits_per_weight, spec.preset)
    yield from map(ConversionNotice, notices)
    if dry_run:
        return
    # The destination is checked while the lock is held, since two first runs may start at the same moment.
    requantised = {p.name: p.requantised_from for p in plans if p.requantised_from}
    keys, header = [_layout_key(p) for p in plans], _manifest_header(opened, spec)
    with ModelWriter(destination, keys, header, files, requantised) as writer:
        quality = None
        if resume and writer.is_published():
            quality = open_model(destination).quality
            yield ConversionNotice(f"{destination} is already complete")
        else:
            check_destination(destination, opened.path, force)
            yield from map(ConversionNotice, writer.begin(resume))
            for name in _quantised_formats(plans):
                yield from machine_code.compile_for(name)
            try:
                yield from _write_tensors(opened, plans, writer, threads or len(usable_processors()))
                writer.complete()
                if check is not None:
                    yield QualityCheckStarted()
                    quality = check(writer.partial)
            except (CheckpointError, FormatError, QualityError):
                writer.discard()
                raise
            writer.publish(force, quality)
    yield ConversionFinished(destination, bits_per_weight, time.monotonic() - began, quality)


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


@dataclass(frozen=True)
class _QuantisedChunk:
    """Quantised rows of one tensor, with the squared error and the sum of squares of each row."""

    packed: PackedTensor
    squared_errors: NDArray[np.float64]
    squares: NDArray[np.float64]


def compiling_cost(plans: Iterable[TensorPlan]) -> float:
    """Return the cost of compiling the loops that `plans` need and the cache lacks (`CompilingQuantiser.cost`)."""
    return machine_code.compiling_cost(_quantised_formats(plans))


def _quantised_formats(plans: Iterable[TensorPlan]) -> dict[str, None]:
    """Return the names of the formats that float values are converted to, in order."""
    return dict.fromkeys(tensor.format for tensor in plans if not tensor.kept)


def _write_tensors(
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
    pending: deque[tuple[TensorPlan, int, int, Future[_QuantisedChunk]]] = deque()
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
    pending: deque[tuple[TensorPlan, int, int, Future[_QuantisedChunk]]],
) -> None:
    job = next(jobs, None)
    if job is not None:
        pending.append((*job, pool.submit(_quantise_chunk, source, *job)))


def _quantise_chunk(source: Source, tensor: TensorPlan, start: int, stop: int) -> _QuantisedChunk:
    rows = source.read(tensor.name, start, stop)
    values = rows.dequantise() if isinstance(rows, QuantisedRows) else rows
    peak = np.abs(values).max()
    if not peak <= MAX_WEIGHT:  # also true for NaN
        raise CheckpointError(_describe_bad_value(source, tensor, start, values))
    try:
        if isinstance(rows, QuantisedRows) and tensor.kept:
            packed, squared_errors = _keep_codes(rows, tensor), np.zeros(values.shape[0])
        else:
            packed, squared_errors = quantise(tensor.format, values, tensor.group_size)
    except FormatError as exc:
        raise FormatError(f"tensor {tensor.name} cannot be stored: {exc}") from exc
    matrix = values.reshape(values.shape[0], -1)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    return _QuantisedChunk(packed, squared_errors, squares)


def _keep_codes(rows: QuantisedRows, tensor: TensorPlan) -> PackedTensor:
    """Pack the parts of a source unchanged. Raises FormatError if they contradict the plan."""
    fmt = find_format(tensor.format)
    planned = (tensor.format, tensor.group_size, tensor.zeros)
    if not isinstance(fmt, GroupedFormat) or (rows.format, rows.group_size, "zeros" in rows.parts) != planned:
        raise FormatError(f"the source announced {tensor.format} and returned {rows.format}")
    layout = fmt.layout(rows.parts["codes"].shape, rows.group_size, tensor.zeros)
    for name, part in rows.parts.items():
        if name not in layout or part.dtype != layout[name][0]:
            raise FormatError(f"the source returned the part {name} {part.dtype}, which {fmt.name} does not have")
    others = {name: part for name, part in rows.parts.items() if name not in ("codes", "scales")}
    return fmt.pack(rows.parts["codes"], rows.parts["scales"], rows.group_size, **others)


def _describe_bad_value(source: Source, tensor: TensorPlan, start: int, values: NDArray[np.float32]) -> str:
    place = np.argwhere(~(np.abs(values) <= MAX_WEIGHT))[0]
    value = float(values[tuple(place)])
    index = [int(place[0]) + start, *(int(number) for number in place[1:])]
    kind = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3g}, which is too large"
    return (
        f"{source.path}: tensor {tensor.name} is {kind} at {index}; "
        "the file is damaged or the training failed: download the checkpoint again"
    )


def _chunks(tensor: TensorPlan) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about 4 Mi weights in multiples of 16 rows. A vector is one chunk."""
    rows = tensor.shape[0]
    size = rows if len(tensor.shape) == 1 else max(TILE_ROWS, CHUNK_WEIGHTS // tensor.shape[1] // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _plan_conversion(source: Source, spec: ConversionSpec) -> list[TensorPlan]:
    tensors = source.tensors
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    plans = plan_tensors(source.config, spec, dtypes, {name: tensor.nbytes for name, tensor in tensors.items()})
    return [_keep_or_requantise(plan, spec, tensors[plan.name]) for plan in plans]


def _keep_or_requantise(plan: TensorPlan, spec: ConversionSpec, stored: TensorInfo) -> TensorPlan:
    """Return the plan of a tensor that may be quantised in the source."""
    if stored.home:
        plan = keep_home(plan, spec, stored.home, stored.group_size, stored.zeros)
    return replace(plan, requantised_from=stored.dtype) if stored.quantised and not plan.kept else plan


def _layout_key(tensor: TensorPlan) -> tuple[str, str, tuple[int, ...], int, bool]:
    return tensor.name, tensor.format, tensor.shape, tensor.group_size, tensor.zeros


def _manifest_header(source: Source, spec: ConversionSpec) -> dict[str, object]:
    """Return the manifest's record of the source, without time or path, so that equal inputs give equal folders."""
    try:
        version = importlib.metadata.version("qwchat")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {
        "producer": {"name": "qwchat", "version": version},
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "bytes": source.total_bytes,
            **source.origin,
        },
        "settings": {
            "preset": spec.preset,
            "group_size": spec.group_size,
            **({"choices": len(spec.choices)} if spec.choices else {}),
        },
    }
