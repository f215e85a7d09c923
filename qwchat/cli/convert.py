"""The command `qwchat convert`: quantise a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.units import data_size
from quant.wording import spell_out
from qwchat import models_folder
from qwchat.chat.formatting import duration, format_ranges
from qwchat.cli.conversion_memory import check_conversion_memory
from qwchat.cli.convert_options import ConvertOptions
from qwchat.cli.convert_progress import ConversionResult, run_conversion
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.error_messages import as_flag
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.quality_gate import QualityGate, describe, require_within
from qwchat.cli.requantised import summarise
from qwchat.cli.sequential_calibration import SEQUENTIAL, SelfWrittenCalibration, discard_text
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.errors import QwchatError
from qwchat.models_folder import LocatedModel
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from quant.conversion import CalibrationOpener, ConversionPlanned
    from quant.policy import TensorPlan

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_PLAN_COLUMNS = (
    Column(wrap=12, style="bold"),
    Column("tensors", wrap=12),
    Column("format"),
    Column("size", right=True),
    Column("bits/weight", right=True, drop=1),
)


def run(options: ConvertOptions, dependencies: Dependencies) -> int:
    """Convert, or show the plan. The folder's path goes to standard output, everything else to standard error."""
    from quant import convert

    options.check()
    streams = Streams(quiet=options.quiet)
    destination = options.destination or default_destination(options)
    if options.destination is None and not options.dry_run:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QwchatError(f"cannot create {destination.parent} ({error.strerror}): give DEST") from error
    threads = options.threads or resolve()["threads"]
    events = convert(
        options.source,
        destination,
        preset=options.preset,
        bits=options.bits,
        group_size=options.group_size,
        calibration=_calibration(options, destination, dependencies, streams, threads),
        budget=options.budget(),
        resume=options.resume,
        dry_run=options.dry_run,
        force=options.force,
        threads=threads,
        check=None if options.no_check else QualityGate(options.source, options.max_kl, threads, dependencies, streams),
    )
    try:
        title = f"converting {models_folder.model_name(options.source)}"
        check = None if options.dry_run else partial(check_conversion_memory, threads=threads)
        conversion = run_conversion(events, title, streams, check=check)
    except KeyboardInterrupt:
        streams.screen.hint("finished tensors are kept: run the same command with --resume to continue")
        raise
    if conversion.finished is not None:
        discard_text(destination)
        require_within(conversion.finished.quality, options.max_kl)
    _report(conversion, destination, options, streams)
    return ExitCode.OK


def _calibration(
    options: ConvertOptions, destination: Path, dependencies: Dependencies, streams: Streams, threads: int | None
) -> Path | CalibrationOpener | None:
    """Return the statistics file, or what opens a sequential calibration for the source."""
    if options.calibration is None or str(options.calibration) != SEQUENTIAL:
        return options.calibration
    return lambda source: SelfWrittenCalibration(source, destination, dependencies, streams, threads)


def default_destination(options: ConvertOptions) -> Path:
    """Return the folder in the models folder that is named after the source and its format.

    Raises:
        ArgumentError: no format has these bits or this group size.
        CheckpointError: the source cannot be opened.
    """
    from quant import formats, policy
    from quant.sources import open_source

    suffix = options.preset
    if options.bits_budget is not None:
        suffix = f"{options.bits_budget:g}bits"
    if suffix is None and options.bits is None and options.group_size is None:
        with open_source(options.source) as source:
            return LocatedModel("", options.source, converted=False).conversion_folder(quantised=source.quantised)
    if suffix is None:
        settings = policy.conversion_spec(bits=options.bits, group_size=options.group_size)
        default, *_ = formats.find_format(settings.preset).group_sizes
        suffix = settings.preset + (f"-g{settings.group_size}" if settings.group_size != default else "")
    return models_folder.models_folder() / f"{models_folder.model_name(options.source)}-{suffix}"


def _report(conversion: ConversionResult, destination: Path, options: ConvertOptions, streams: Streams) -> None:
    planned, finished = conversion.planned, conversion.finished
    if options.json:
        streams.write(json_line(_as_data(conversion, destination)) + "\n")
    elif finished is None:
        _write_plan(TableWriter(streams), planned, destination)
    else:
        streams.screen.notice(
            f"converted {data_size(planned.total_bytes_in)} to {data_size(planned.total_bytes_out)}, "
            f"{finished.bits_per_weight:.3f} bits per weight, in {duration(finished.seconds)}"
        )
        if finished.quality is not None:
            streams.screen.notice(describe(finished.quality))
        for kind in summarise(_stored_tensors(finished.path).values()):
            streams.screen.notice(f"quantised again: {kind.text}")
        streams.write(f"{finished.path}\n")


def _stored_tensors(path: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries of the tensors of a model folder by name."""
    from quant.container import open_model

    tensors: dict[str, dict[str, Any]] = open_model(path).manifest["tensors"]
    return tensors


def _write_plan(tables: TableWriter, planned: ConversionPlanned, destination: Path) -> None:
    """Write the total size and the destination, then one row per group of layers with the same formats."""
    total = (
        f"{data_size(planned.total_bytes_in)} would become {data_size(planned.total_bytes_out)} "
        f"({planned.total_bytes_out:,} bytes, {planned.bits_per_weight:.3f} bits per weight, preset {planned.preset}) "
        f"in {destination.resolve()}"
    )
    rows = [
        (part, ", ".join(roles) if part.startswith("layer") else "", kind, data_size(packed), f"{bits:.3f}")
        for part, kinds in _grouped(planned)
        for kind, (roles, packed, bits) in kinds.items()
    ]
    # Only the first row of a group shows its name.
    shown = [
        (row[0] if number == 0 or rows[number - 1][0] != row[0] else "", *row[1:]) for number, row in enumerate(rows)
    ]
    again = Counter((plan.requantised_from, plan.format) for plan in planned.tensors if plan.requantised_from)
    notes = [
        f"quantised again: {count} {'tensor' if count == 1 else 'tensors'} from {source_type} to {stored}"
        for (source_type, stored), count in again.items()
    ]
    tables.write(*map(tables.paragraph, [total, *notes]), tables.table(_PLAN_COLUMNS, shown))


_Kinds = dict[str, tuple[list[str], int, float]]


def _grouped(planned: ConversionPlanned) -> list[tuple[str, _Kinds]]:
    """Group the tensors by layers of the same formats, such as "layers 0-2, 21-23"; other tensors stand alone."""
    layers: dict[int, list[TensorPlan]] = {}
    others: dict[str, list[TensorPlan]] = {}
    for plan in planned.tensors:
        if found := _LAYER.match(plan.name):
            layers.setdefault(int(found[1]), []).append(plan)
        else:
            others.setdefault(_role(plan), []).append(plan)
    alike: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, plans in layers.items():
        alike.setdefault(tuple((_role(plan), plan.format) for plan in plans), []).append(number)
    groups = []
    for numbers in alike.values():
        name = f"{'layer' if len(numbers) == 1 else 'layers'} {format_ranges(numbers)}"
        groups.append((name, _kinds([plan for number in numbers for plan in layers[number]])))
    before, *behind = [
        (name, _kinds(plans)) for name, plans in others.items()
    ]  # The embedding; the final norm and the head.
    return [before, *groups, *behind]


def _kinds(plans: list[TensorPlan]) -> _Kinds:
    kinds: dict[str, list[TensorPlan]] = {}
    for plan in plans:
        kinds.setdefault(plan.format, []).append(plan)
    return {kind: _summed(members) for kind, members in kinds.items()}


def _summed(plans: list[TensorPlan]) -> tuple[list[str], int, float]:
    packed = sum(plan.packed_bytes for plan in plans)
    roles = ["norms and biases"] if plans[0].format == "vector" else list(dict.fromkeys(map(_role, plans)))
    return roles, packed, 8 * packed / sum(plan.parameters for plan in plans)


def _role(plan: TensorPlan) -> str:
    """Return the name of a tensor within its layer: q, gate, embed_tokens."""
    return plan.name.rpartition(".")[0].rpartition(".")[2].removesuffix("_proj")


def _as_data(conversion: ConversionResult, destination: Path) -> dict[str, object]:
    planned, finished = conversion.planned, conversion.finished
    stored = {} if finished is None else _stored_tensors(finished.path)
    return {
        "path": str(destination.resolve()),
        "preset": planned.preset,
        "dry_run": finished is None,
        "bytes_in": planned.total_bytes_in,
        "bytes_out": planned.total_bytes_out,
        "bits_per_weight": planned.bits_per_weight,
        "seconds": None if finished is None else round(finished.seconds, 3),
        "quality": None if finished is None or finished.quality is None else asdict(finished.quality),
        "notices": [spell_out(notice, as_flag) for notice in conversion.notices],
        "tensors": [
            {
                "name": plan.name,
                "shape": list(plan.shape),
                "format": plan.format,
                "group_size": plan.group_size,
                "bytes": plan.packed_bytes,
                "bits_per_weight": plan.bits_per_weight,
                "kept": plan.kept,
                "requantised_from": plan.requantised_from or None,
                "relative_error": stored[plan.name]["relative_error"] if stored else None,
            }
            for plan in planned.tensors
        ],
    }
