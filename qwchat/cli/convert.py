"""``qwchat convert``: quantise a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qwchat import models_folder
from qwchat.chat.view.table import table
from qwchat.chat.view.units import data_size, duration
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.following import Conversion, follow
from qwchat.cli.options import ConvertOptions
from qwchat.cli.report import dumps
from qwchat.cli.services import Services
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from quant.conversion import Planned


def run(options: ConvertOptions, services: Services) -> int:
    """Convert, or show the plan; the folder's path goes to standard output, everything else to standard error."""
    from quant import convert

    streams = Streams(quiet=options.quiet)
    destination = options.destination or default_destination(options)
    if options.destination is None and not options.dry_run:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QwchatError(f"cannot make {destination.parent}: {error.strerror}; give DEST") from error
    events = convert(
        options.source,
        destination,
        preset=options.preset or "q4",
        bits=options.bits,
        group_size=options.group_size,
        resume=options.resume,
        dry_run=options.dry_run,
        force=options.force,
        threads=options.threads or resolve()["threads"],
    )
    try:
        conversion = follow(events, f"converting {models_folder.name_of(options.source)}", streams)
    except KeyboardInterrupt:
        streams.screen.hint("what is done is kept: the same command with --resume goes on with it")
        raise
    _report(conversion, destination, options, streams)
    return ExitCode.OK


def default_destination(options: ConvertOptions) -> Path:
    """In the models folder, under the checkpoint's name and what it is converted to."""
    if options.preset is not None:
        suffix = options.preset
    elif options.group_size not in (None, 32):
        suffix = f"lin{options.bits or 4}-g{options.group_size}"
    else:
        suffix = f"q{options.bits or 4}"
    return models_folder.models_folder() / f"{models_folder.name_of(options.source)}-{suffix}"


def _report(conversion: Conversion, destination: Path, options: ConvertOptions, streams: Streams) -> None:
    planned, finished = conversion.planned, conversion.finished
    if options.json:
        streams.write(dumps(_as_data(conversion, destination)) + "\n")
    elif finished is None:
        streams.write(_plan(planned))
    else:
        streams.screen.notice(
            f"converted {data_size(planned.total_bytes_in)} to {data_size(planned.total_bytes_out)}, "
            f"{finished.bits_per_weight:.3f} bits per weight, in {duration(finished.seconds)}"
        )
        streams.write(f"{finished.path}\n")


def _plan(planned: Planned) -> str:
    rows = [
        (
            plan.name,
            plan.format,
            " × ".join(map(str, plan.shape)),
            f"{plan.packed_bytes:,}",
            f"{plan.bits_per_weight:.3f}",
        )
        for plan in planned.tensors
    ]
    lines = table(("tensor", "format", "shape", "bytes", "bits/weight"), rows, right=(3, 4))
    total = (
        f"{len(rows)} tensors, {planned.total_bytes_in:,} bytes become {planned.total_bytes_out:,}: "
        f"{planned.bits_per_weight:.3f} bits per weight"
    )
    return f"{lines}\n{total}\n"


def _as_data(conversion: Conversion, destination: Path) -> dict[str, object]:
    planned, finished = conversion.planned, conversion.finished
    return {
        "path": str(destination.resolve()),
        "preset": planned.preset,
        "dry_run": finished is None,
        "bytes_in": planned.total_bytes_in,
        "bytes_out": planned.total_bytes_out,
        "bits_per_weight": planned.bits_per_weight,
        "seconds": None if finished is None else round(finished.seconds, 3),
        "notices": conversion.notices,
        "tensors": [
            {
                "name": plan.name,
                "shape": list(plan.shape),
                "format": plan.format,
                "group_size": plan.group_size,
                "bytes": plan.packed_bytes,
                "bits_per_weight": plan.bits_per_weight,
            }
            for plan in planned.tensors
        ],
    }
