"""Conversion pipeline: source -> policy -> quantiser -> model folder, in chunks of rows, reported as events.

Python threads quantise chunks in parallel (the compiled loops release the GIL), and the caller's thread writes them in
order. Peak memory is a few chunks, independent of the size of the model. The result depends only on the source and the
arguments, not on the number of threads or on where an earlier attempt stopped.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from quant.bit_budget import BitBudget, budget_spec
from quant.calibration import Calibration, open_statistics
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
from quant.errors import ArgumentError, CheckpointError, FormatError, QualityError, StatisticsError
from quant.families import parameter_count
from quant.machine import usable_processors
from quant.policy import ConversionSpec, TensorPlan, conversion_spec, keep_home, plan_tensors
from quant.quality import Quality
from quant.quantisers import machine_code
from quant.quantisers.feedback_factor import LOOPS
from quant.sources import Source, TensorInfo, check_tensors, open_source
from quant.tensor_pipeline import write_tensors
from quant.writer import ModelWriter, weights_size

__all__ = [
    "CalibrationOpener",
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


CalibrationOpener = Callable[[Source], Calibration]
"""Opens a calibration for a source, which stays open during the conversion."""
QualityCheck = Callable[[Path], Quality | None]
"""Measures a complete model folder that is not published yet; None if it cannot. Raises QualityError to refuse it."""


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    preset: str | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    budget: BitBudget | None = None,
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
    check: QualityCheck | None = None,
    calibration: str | Path | CalibrationOpener | None = None,
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
        budget: bits per weight of the whole model, as an alternative to the three above.
        resume: continue what an earlier attempt left.
        dry_run: stop after `ConversionPlanned` without writing anything.
        force: replace an existing model once the new one is complete.
        threads: number of quantising threads. None: one per processor that this process may use.
        check: compares the complete model with its source before it is published.
        calibration: statistics file for error feedback, or a function that opens a calibration for the open source.

    Yields:
        `ConversionPlanned` first, then progress, and `ConversionFinished` last.

    Raises:
        ArgumentError: an argument is invalid, or the destination is in use.
        CheckpointError: the source is missing, damaged, contradicts its config, or has values that are not finite.
        FormatError: the shape of a tensor does not fit its format.
        StatisticsError: the statistics file is missing, damaged, or belongs to another model.
        DiskFullError: the disk of the destination is full.
        QualityError: `check` refused the model, which is deleted.
    """
    if threads is not None and threads < 1:
        raise ArgumentError(f"{threads} threads are not enough; give 1 or more")
    with open_source(source) as opened, ExitStack() as stack:
        spec = _requested_spec(opened, preset, bits, group_size, budget)
        if isinstance(calibration, str | Path):
            statistics = open_statistics(calibration, opened.config, opened.fingerprint)
            provider: Calibration | None = stack.enter_context(statistics)
        else:
            provider = None if calibration is None else calibration(opened)
        yield from convert_source(
            opened,
            destination,
            spec,
            resume=resume,
            dry_run=dry_run,
            force=force,
            threads=threads,
            check=check,
            calibration=provider,
        )


def _requested_spec(
    source: Source, preset: str | None, bits: int | None, group_size: int | None, budget: BitBudget | None
) -> ConversionSpec:
    if budget is None:
        return conversion_spec(preset, bits, group_size, quantised=source.quantised)
    if any(each is not None for each in (preset, bits, group_size)):
        raise ArgumentError("a budget chooses the format of each matrix; leave out preset, bits and group size")
    return budget_spec(source, budget)


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
    calibration: Calibration | None = None,
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
    yield ConversionPlanned(bytes_in, bytes_out, tuple(plans), bits_per_weight, spec.preset, calibration is not None)
    yield from map(ConversionNotice, notices)
    if dry_run:
        return
    # The destination is checked while the lock is held, since two first runs may start at the same moment.
    requantised = {p.name: p.requantised_from for p in plans if p.requantised_from}
    keys, header = [_layout_key(p) for p in plans], _manifest_header(opened, spec, calibration)
    with ModelWriter(destination, keys, header, files, requantised) as writer:
        quality = None
        if resume and writer.is_published():
            quality = open_model(destination).quality
            yield ConversionNotice(f"{destination} is already complete")
        else:
            check_destination(destination, opened.path, force)
            yield from map(ConversionNotice, writer.begin(resume))
            for name, loops in _needed_loops(plans, calibration is not None).items():
                yield from machine_code.compile_loops(name, loops)
            try:
                yield from write_tensors(opened, plans, writer, threads or len(usable_processors()), calibration)
                writer.complete()
                if check is not None:
                    yield QualityCheckStarted()
                    quality = check(writer.partial)
            except (CheckpointError, FormatError, QualityError, StatisticsError):
                writer.discard()
                raise
            writer.publish(force, quality)
    yield ConversionFinished(destination, bits_per_weight, time.monotonic() - began, quality)


def compiling_cost(plans: Iterable[TensorPlan], calibrated: bool = False) -> float:
    """Return the cost of compiling the loops that `plans` need and the cache lacks (`CompilingQuantiser.cost`)."""
    return machine_code.compiling_cost(_needed_loops(plans, calibrated).values())


def _needed_loops(plans: Iterable[TensorPlan], calibrated: bool) -> dict[str, machine_code.CompiledLoops | None]:
    """Return the loops of the formats that float values are converted to, and of the error feedback, in order."""
    formats = dict.fromkeys(tensor.format for tensor in plans if not tensor.kept)
    return {name: machine_code.loops_of(name) for name in formats} | ({"error feedback": LOOPS} if calibrated else {})


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


def _manifest_header(source: Source, spec: ConversionSpec, calibration: Calibration | None) -> dict[str, object]:
    """Return the manifest's record of the source, without time or path, so that equal inputs give equal folders."""
    try:
        version = importlib.metadata.version("qwchat")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    calibrated = {} if calibration is None else {"calibration": calibration.fingerprint}
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
            **calibrated,
        },
    }
