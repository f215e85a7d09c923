"""The catalogue as a table or as JSON: what each model needs, and what fits this machine."""

from __future__ import annotations

from quant.model_config import ModelConfig
from quant.units import data_size
from qwchat.chat.view.table import format_table
from qwchat.cli.json_output import json_line
from qwchat.cli.streams import Streams

_PRESETS = ("q4", "q8")
_CONTEXT = 4096


def write_catalogue(streams: Streams, *, as_json: bool) -> None:
    """Write the catalogue to standard output: memory with 4,096 tokens of context at each preset."""
    from qwchat.cpu.memory import total_memory
    from qwchat.store.catalogue import entries

    memory = total_memory()
    needs = {entry.name: {preset: needed_bytes(entry.config, preset) for preset in _PRESETS} for entry in entries()}
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
            _fit(needs[entry.name], memory),
            f"{entry.config.max_position_embeddings:,}",
            entry.licence,
            entry.repository,
        )
        for entry in entries()
    ]
    heads = ("name", *_PRESETS, "fits", "context", "licence", "repository")
    streams.write(format_table(heads, rows, right=(1, 2, 4)) + "\n")
    streams.screen.hint(f"memory with {_CONTEXT:,} tokens of context; pull one with qwchat pull NAME")


def _fit(needs: dict[str, int], memory: int | None) -> str:
    """Return the best preset that leaves a tenth of the machine's memory to others, "" if none does."""
    if memory is None:
        return ""
    fitting = [preset for preset, needed in needs.items() if needed <= 0.9 * memory]
    return fitting[-1] if fitting else ""


def needed_bytes(config: ModelConfig, preset: str, context: int = _CONTEXT) -> int:
    """Return the memory of weights, KV cache and work space of a model at a preset, in bytes."""
    from quant.families import expected_tensors
    from quant.policy import conversion_spec, plan_tensors
    from qwchat.cpu.kv_cache import cache_bytes, choose_kv_kind

    names = expected_tensors(config)
    plans = plan_tensors(config, conversion_spec(preset), dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
    cache = cache_bytes(config, context, choose_kv_kind("auto", config, context), config.num_layers)
    return sum(plan.packed_bytes for plan in plans) + cache + _PROGRAM_BYTES


_PROGRAM_BYTES = 180_000_000  # Interpreter, compiled code and work space, as measured with 7B at 4,096 tokens.
