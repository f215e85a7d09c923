"""The catalogue as a table or as JSON: what each model needs, and what fits this machine."""

from __future__ import annotations

from quant.units import data_size
from qwchat.cli.json_output import json_line
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter

_PRESETS = ("q4", "q8")
_CONTEXT = 4096
_COLUMNS = (
    Column("name", style="bold"),
    *(Column(preset, right=True) for preset in _PRESETS),
    Column("fits", style="green"),
    Column("context", right=True, drop=2),
    Column("licence", drop=1),
    Column("repository", drop=3, style="dim"),
)


def write_catalogue(streams: Streams, *, as_json: bool) -> None:
    """Write the catalogue to standard output: memory with 4,096 tokens of context at each preset."""
    from qwchat.cpu.memory import total_memory
    from qwchat.store.catalogue import entries
    from qwchat.store.memory_estimate import estimate, planned_tensors

    memory = total_memory()
    needs = {
        entry.name: {
            preset: estimate(entry.config, planned_tensors(entry.config, preset), _CONTEXT).total for preset in _PRESETS
        }
        for entry in entries()
    }
    if as_json:
        models = [
            {
                "name": entry.name,
                "repository": entry.repository,
                "licence": entry.licence,
                "context": entry.config.max_position_embeddings,
                "memory": needs[entry.name],
            }
            for entry in entries()
        ]
        streams.write(json_line({"context": _CONTEXT, "machine_memory": memory, "models": models}) + "\n")
        return
    rows = [
        (
            entry.name,
            *(data_size(needs[entry.name][preset]) for preset in _PRESETS),
            _best_fit(needs[entry.name], memory),
            f"{entry.config.max_position_embeddings:,}",
            entry.licence,
            entry.repository,
        )
        for entry in entries()
    ]
    tables = TableWriter(streams)
    tables.write(tables.table(_COLUMNS, rows))
    streams.screen.hint(f"memory with {_CONTEXT:,} tokens of context; qwchat pull NAME downloads one")


def _best_fit(needs: dict[str, int], memory: int | None) -> str:
    """Return the largest preset that leaves a tenth of the machine's memory to other programs; "" if none does."""
    from qwchat.store.memory_estimate import fit

    fitting = [preset for preset, needed in needs.items() if memory is not None and fit(needed, memory) == "yes"]
    return fitting[-1] if fitting else ""
