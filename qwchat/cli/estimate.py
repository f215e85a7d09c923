"""`qwchat estimate`: memory of a model by preset and context window, before it is pulled or converted."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.presets import PRESETS
from quant.units import data_size
from qwchat import models_folder
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import requested_model
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.options import EstimateOptions
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.errors import UsageError

if TYPE_CHECKING:
    from quant.model_config import ModelConfig
    from qwchat.model.gpu_memory import Tensors
    from qwchat.store.memory_estimate import MemoryEstimate

_COLUMNS = (
    Column("preset", style="bold"),
    Column("context", right=True),
    Column("KV", drop=2),
    Column("weights", right=True, drop=3),
    Column("KV cache", right=True, drop=4),
    Column("work space", right=True, drop=1),
    Column("total", right=True),
    Column("fits", styles={"no": "red", "yes": "green"}),
)


@dataclass(frozen=True)
class _Subject:
    """What is estimated: its name, its sizes, and preset and tensors if it is converted already."""

    name: str
    config: ModelConfig
    preset: str | None = None
    tensors: Tensors | None = None


def run(options: EstimateOptions, dependencies: Dependencies) -> int:
    """Write a table of preset and context window, or one JSON object."""
    from qwchat.cpu.kernels.thread_counts import default_threads
    from qwchat.cpu.memory import total_memory
    from qwchat.model.context_limits import context_limit
    from qwchat.store.memory_estimate import contexts, estimate, planned_tensors

    streams = Streams()
    subject = _find(requested_model(options.model))
    asked = _contexts(options.ctx or (), context_limit(subject.config), subject.name)
    presets = [subject.preset] if subject.preset else [options.preset] if options.preset else list(PRESETS)
    threads = options.threads or default_threads()
    rows = [
        (preset, estimate(subject.config, tensors, context, options.kv or "auto", threads))
        for preset in presets
        for tensors in [subject.tensors or planned_tensors(subject.config, preset)]
        for context in contexts(subject.config, asked)
    ]
    memory = total_memory()
    if options.json:
        data = {"name": subject.name, "machine_memory": memory, "estimates": [_as_data(*row) for row in rows]}
        streams.write(json_line(data) + "\n")
    else:
        tables = TableWriter(streams)
        tables.write(tables.table(_COLUMNS, [_as_row(*row, memory) for row in rows]))
    return ExitCode.OK


def _contexts(texts: Sequence[str], longest: int, name: str) -> list[int]:
    """Return the context windows that were asked for. Raises UsageError for what the model does not support."""
    contexts = []
    for text in texts:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= longest:
            raise UsageError(f"--ctx must be from 1 to {longest:,} for {name}, not {text[:20]}")
        contexts.append(int(text))
    return contexts


def _find(name: str) -> _Subject:
    """Find the model that `name` means: here, in the catalogue, or on the hub. Raises ModelError and HubError."""
    from quant.families import read_config
    from qwchat.errors import ModelError
    from qwchat.store.catalogue import find_entry

    path = Path(name)
    if path.name == "config.json" and path.is_file():
        return _Subject(str(path), read_config(path.parent))
    try:
        located = models_folder.locate(name)
    except ModelError:
        if entry := find_entry(name):
            return _Subject(entry.name, entry.config)
        if name.count("/") == 1 and not path.exists():
            return _on_hub(name)
        raise
    if located.converted:
        from quant.container import open_model
        from qwchat.model.gpu_memory import stored_tensors

        folder = open_model(located.path)
        return _Subject(located.name, folder.config, folder.preset, stored_tensors(folder.config, folder.tensor))
    return _Subject(located.name, read_config(located.path))


def _on_hub(name: str) -> _Subject:
    """Fetch config.json of a repository, and nothing else."""
    from quant.families import read_config
    from qwchat.store.hub import find_repository, parse_repository, read_small

    repository = find_repository(*parse_repository(name))
    with tempfile.TemporaryDirectory() as folder:
        read_small(repository, repository.files["config.json"], Path(folder))
        return _Subject(repository.name, read_config(folder))


def _as_row(preset: str, row: MemoryEstimate, memory: int | None) -> tuple[str, ...]:
    return (
        preset,
        f"{row.context:,}",
        row.kv,
        data_size(row.weights),
        data_size(row.cache),
        data_size(row.workspace),
        data_size(row.total),
        "" if memory is None else "yes" if row.total <= memory else "no",
    )


def _as_data(preset: str, row: MemoryEstimate) -> dict[str, object]:
    return {
        "preset": preset,
        "context": row.context,
        "kv": row.kv,
        "weights": row.weights,
        "cache": row.cache,
        "work_space": row.workspace,
        "total": row.total,
    }
