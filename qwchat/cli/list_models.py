"""`qwchat list`: the models on this machine."""

from __future__ import annotations

from datetime import datetime

from quant.safe_files import is_regular_file
from quant.units import data_size
from qwchat import models_folder
from qwchat.chat.formatting import one_line
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.model_options import ListOptions
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.last_use import last_use
from qwchat.models_folder import LocatedModel

_DAMAGED = "damaged: "
_COLUMNS = (
    Column("name", wrap=20, style="bold"),
    Column("preset", drop=5),
    Column("bits/weight", right=True, drop=3),
    Column("size", right=True),
    Column("family", drop=2),
    Column("licence", drop=1),
    Column("last used", drop=4),
    Column("", wrap=10, style="dim"),
)


def run(options: ListOptions, dependencies: Dependencies) -> int:
    """List the built-in model, and models and GGUF files of the models folder, damaged ones included."""
    streams = Streams()
    entries = [_entry(model) for model in models_folder.available()]
    if options.json:
        streams.write(json_line({"folder": str(models_folder.models_folder()), "models": entries}) + "\n")
        return ExitCode.OK
    if not entries:
        streams.screen.hint(f"there are no models in {models_folder.models_folder()}")
        return ExitCode.OK
    rows = [
        (
            str(entry["name"]),
            str(entry["preset"] or "-"),
            "-" if entry["bits_per_weight"] is None else f"{entry['bits_per_weight']:.2f}",
            "-" if entry["bytes"] is None else data_size(float(str(entry["bytes"]))),
            str(entry["family"] or "-"),
            str(entry["licence"] or "-"),
            _local_time(entry["last_used"]),
            str(entry["remark"]),
        )
        for entry in entries
    ]
    damaged = {number: "red" for number, row in enumerate(rows) if row[-1].startswith(_DAMAGED)}
    tables = TableWriter(streams)
    tables.write(tables.table(_COLUMNS, rows, damaged))
    return ExitCode.OK


def _entry(model: LocatedModel) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": model.name,
        "path": str(model.path),
        "converted": model.converted,
        "embedded": model.embedded,
        "preset": None,
        "bits_per_weight": None,
        "bytes": None,
        "family": None,
        "licence": None,
        "last_used": None,
        "remark": "",
    }
    if used := last_use(model.path if model.converted else model.destination):
        entry["last_used"] = used.isoformat()
    if model.converted:
        return entry | _figures(model)
    weights = [path for path in model.files if is_regular_file(path)]
    converted = models_folder.is_model(model.destination)
    state = f"converted to {model.destination.name}" if converted else "converted on first use"
    origin = "built in" if model.embedded else model.kind
    size = sum(path.stat().st_size for path in weights)
    return entry | {"bytes": size, "family": _family(model), "remark": f"{origin}, {state}"}


def _family(model: LocatedModel) -> str | None:
    from quant.errors import QuantError
    from quant.families import read_config
    from quant.sources import open_source

    try:
        if model.path.is_dir() and not models_folder.is_quantised(model.path):
            return read_config(model.path).model_type
        with open_source(model.path) as source:
            return source.config.model_type
    except QuantError:
        return None


def _figures(model: LocatedModel) -> dict[str, object]:
    from quant.container import open_model
    from quant.errors import QuantError

    try:
        folder = open_model(model.path)
    except QuantError as error:
        return {"remark": f"{_DAMAGED}{error}"}
    licence = folder.manifest["source"].get("licence")
    return {
        "preset": folder.preset,
        "bits_per_weight": folder.bits_per_weight,
        "bytes": folder.total_bytes,
        "family": folder.config.model_type,
        "licence": one_line(licence) if isinstance(licence, str) else None,
    }


def _local_time(recorded: object) -> str:
    """Return a recorded time as text in local time, or "-"."""
    return datetime.fromisoformat(str(recorded)).astimezone().strftime("%Y-%m-%d %H:%M") if recorded else "-"
