"""`qwchat show`: the details, tensors and files of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from quant.quality import Quality
from quant.safe_files import is_regular_file
from quant.units import data_size
from qwchat import models_folder
from qwchat.chat.formatting import format_ranges
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import requested_model
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.model_options import ShowOptions
from qwchat.cli.quality_gate import describe
from qwchat.cli.requantised import Requantised, summarise
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.models_folder import LocatedModel

if TYPE_CHECKING:
    from quant.model_config import ModelConfig
    from qwchat.model.gpu_memory import Tensors
    from qwchat.store.memory_estimate import MemoryEstimate

_MAX_ORIGIN = 200  # characters of a text from the manifest
_MAX_SHOWN_CONTEXT = 1 << 18
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_TENSOR_COLUMNS = (
    Column("tensor", wrap=16, style="bold"),
    Column("layers", wrap=8, drop=2),
    Column("format"),
    Column("shape", drop=3),
    Column("bytes", right=True),
    Column("error", right=True, drop=1),
)
_FILE_COLUMNS = (Column("file", wrap=12, style="bold"), Column("bytes", right=True))


@dataclass(frozen=True)
class TensorDetails:
    """Tensor as it is stored.

    `error` is its relative quantisation error, None in a checkpoint. `requantised_from` is the quantised type of the
    tensor in the source, if its codes were not kept.
    """

    name: str
    format: str
    group_size: int
    shape: tuple[int, ...]
    nbytes: int
    error: float | None
    requantised_from: str | None = None


@dataclass(frozen=True)
class ModelDetails:
    """Details of a model, a checkpoint or a GGUF file.

    `stored_bytes` is the size of all weights in their files, `stored` how the kernels read them, None before the
    conversion. `device` says where a chat would run it, and why. `requantised` lists what a conversion did not keep.
    """

    located: LocatedModel
    config: ModelConfig
    facts: dict[str, object]
    tensors: tuple[TensorDetails, ...]
    stored_bytes: int
    files: dict[str, int]
    stored: Tensors | None = None
    device: str = ""
    requantised: tuple[Requantised, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights of the whole model; a tied head counts once."""
        from quant.families import parameter_count

        return parameter_count(self.config)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter of the whole model."""
        return 8 * self.stored_bytes / self.parameters


def run(options: ShowOptions, dependencies: Dependencies) -> int:
    """Show a model, or a checkpoint or GGUF file that has not been converted yet."""
    streams = Streams()
    located = models_folder.locate(requested_model(options.model))
    if not located.converted and models_folder.is_model(located.destination):
        located = LocatedModel(located.destination.name, located.destination, converted=True, embedded=located.embedded)
    details = _of_model(located) if located.converted else _of_source(located)
    if options.json:
        streams.write(json_line(_as_data(details)) + "\n")
    else:
        _write_tables(TableWriter(streams), details)
    return ExitCode.OK


def _of_model(located: LocatedModel) -> ModelDetails:
    from quant.container import open_model
    from qwchat.model.gpu_memory import stored_tensors
    from qwchat.placement import preview

    folder = open_model(located.path)
    entries = folder.manifest["tensors"]
    tensors = tuple(
        TensorDetails(
            name,
            entry["format"],
            entry["group_size"],
            tuple(entry["shape"]),
            sum(part["nbytes"] for part in entry["parts"].values()),
            entry["relative_error"],
            entry.get("requantised_from"),
        )
        for name, entry in entries.items()
    )
    facts = {
        "preset": folder.preset,
        "settings": folder.manifest["settings"],
        "source": folder.manifest["source"],
        "fingerprint": folder.fingerprint,
        "quality": folder.quality,
    }
    stored = stored_tensors(folder.config, folder.tensor)
    device = preview(folder).explanation
    files, requantised = _files(located), tuple(summarise(entries.values()))
    size = folder.total_bytes
    return ModelDetails(located, folder.config, facts, tensors, size, files, stored, device, requantised)


def _of_source(located: LocatedModel) -> ModelDetails:
    from quant.sources import open_source

    with open_source(located.path) as source:
        tensors = tuple(
            TensorDetails(name, stored.dtype, stored.group_size, stored.shape, stored.nbytes, None)
            for name, stored in source.tensors.items()
        )
        facts = {
            "preset": None,
            "settings": None,
            "source": None,
            "fingerprint": source.fingerprint[:16],
            "quality": None,
        }
        return ModelDetails(located, source.config, dict(facts), tensors, source.total_bytes, _files(located))


def _files(located: LocatedModel) -> dict[str, int]:
    paths = sorted(located.path.iterdir()) if located.path.is_dir() else located.files
    return {path.name: path.stat().st_size for path in paths if is_regular_file(path)}


def _as_data(details: ModelDetails) -> dict[str, object]:
    config, quality = details.config, details.facts["quality"]
    return {
        "name": details.located.name,
        "path": str(details.located.path),
        "converted": details.located.converted,
        **details.facts,
        "quality": asdict(quality) if isinstance(quality, Quality) else None,
        "bits_per_weight": details.bits_per_weight,
        "parameters": details.parameters,
        "bytes": details.stored_bytes,
        "config": {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        "tensors": [
            {
                "name": tensor.name,
                "format": tensor.format,
                "group_size": tensor.group_size,
                "shape": list(tensor.shape),
                "bytes": tensor.nbytes,
                "relative_error": tensor.error,
                "requantised_from": tensor.requantised_from,
            }
            for tensor in details.tensors
        ],
        "files": details.files,
        "memory": [{"context": need.context, "kv": need.kv, "total": need.total} for need in _needs(details)],
    }


def _write_tables(tables: TableWriter, details: ModelDetails) -> None:
    config, located = details.config, details.located
    origin: Any = details.facts["source"]
    kind = (
        f"preset {details.facts['preset']}{_calibrated(details)}"
        if located.converted
        else f"{located.kind}, not converted yet"
    )
    facts = [
        ("model", f"{located.name} ({kind})"),
        ("folder" if located.path.is_dir() else "file", str(located.path)),
        *([("made from", f"{origin['name']}, {data_size(origin['bytes'])}")] if located.converted else []),
        *_origin_facts(origin or {}),
        ("fingerprint", str(details.facts["fingerprint"])),
        ("weights", f"{details.parameters:,} in {details.stored_bytes:,} bytes"),
        ("bits per weight", f"{details.bits_per_weight:.4f}"),
        *_quality_facts(details),
        *(("quantised again", kind.text) for kind in details.requantised),
        (
            "shape",
            f"{config.num_layers} layers, hidden {config.hidden_size}, intermediate {config.intermediate_size}, "
            f"{config.num_heads} heads and {config.num_kv_heads} KV heads of {config.head_dim}",
        ),
        (
            "vocabulary",
            f"{config.vocab_size:,} tokens, {'tied' if config.tie_word_embeddings else 'separate'} output head",
        ),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        *_memory_facts(details),
        *([("device", details.device)] if details.device else []),
    ]
    files = [(name, f"{size:,}") for name, size in details.files.items()]
    tables.write(
        tables.pairs(facts),
        tables.table(_TENSOR_COLUMNS, _tensor_rows(details.tensors)),
        tables.table(_FILE_COLUMNS, files),
    )


def _calibrated(details: ModelDetails) -> str:
    """Return a remark if the matrices were encoded with the statistics of a calibration."""
    settings = details.facts["settings"]
    return ", calibrated" if isinstance(settings, dict) and settings.get("calibration") else ""


def _origin_facts(origin: dict[str, object]) -> list[tuple[str, str]]:
    """Return repository, revision and licence of a model that was pulled."""
    return [
        (name, text[:_MAX_ORIGIN])
        for name in ("repository", "revision", "licence")
        if isinstance(text := origin.get(name), str)
    ]


def _quality_facts(details: ModelDetails) -> list[tuple[str, str]]:
    """Return the distance of a converted model from its source."""
    if not details.located.converted:
        return []
    quality = details.facts["quality"]
    return [("quality", describe(quality) if isinstance(quality, Quality) else "not measured")]


def _needs(details: ModelDetails) -> list[MemoryEstimate]:
    """Return what a chat with the model needs, for several context windows; nothing for a checkpoint."""
    if details.stored is None:
        return []
    from qwchat.store.memory_estimate import contexts, estimate

    config = details.config
    try:
        return [
            estimate(config, details.stored, context)
            for context in contexts(config, ())
            if context <= _MAX_SHOWN_CONTEXT
        ]
    except (MemoryError, ValueError, OverflowError):  # Sizes that no machine has.
        return []


def _memory_facts(details: ModelDetails) -> list[tuple[str, str]]:
    """Return the memory that a chat with the model needs."""
    needs = [f"{data_size(need.total)} with {need.context:,} tokens" for need in _needs(details)]
    return [("memory", ", ".join(needs))] if needs else []


def _tensor_rows(tensors: Iterable[TensorDetails]) -> list[tuple[str, ...]]:
    """Return one row for all tensors of the same role, shape and format, with the numbers of their layers."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[TensorDetails]] = {}
    for tensor in tensors:
        role = _LAYER.sub(".layers.*.", tensor.name).removeprefix("model.")
        groups.setdefault((role, tensor.format, tensor.shape), []).append(tensor)
    rows: list[tuple[str, ...]] = []
    roles = list(dict.fromkeys(role for role, _, _ in groups))
    for (role, kind, shape), members in sorted(groups.items(), key=lambda item: roles.index(item[0][0])):
        layers = [int(match[1]) for tensor in members if (match := _LAYER.search(tensor.name))]
        errors = [tensor.error for tensor in members if tensor.error is not None]
        rows.append(
            (
                role,
                format_ranges(layers),
                kind,
                " × ".join(map(str, shape)),
                f"{sum(tensor.nbytes for tensor in members):,}",
                f"{sum(errors) / len(errors):.4f}" if errors else "",
            )
        )
    return rows
