"""Tables of estimates: the calculator case of Qwen2-7B, and which model fits which machine."""

from __future__ import annotations

from docs.generator.markdown import code, table
from quant.presets import PRESETS
from quant.units import data_size
from qwchat.store.cards import common_cards
from qwchat.store.catalogue import find_entry
from qwchat.store.gpu_estimate import GpuEstimate
from qwchat.store.memory_estimate import estimate, planned_tensors
from qwchat.store.recommendation import fitting_machine

_CALCULATOR_MODEL, _CALCULATOR_CONTEXT = "qwen2:7b", 1024
_MACHINES = {"8 GB": 8_000_000_000, "16 GB": 16_000_000_000, "32 GB": 32_000_000_000}
_MACHINE_PRESETS = ("q4", "q8")


def calculator() -> str:
    """Return what Qwen2-7B needs with 1,024 tokens of context in each preset, on the CPU and on a GPU."""
    entry = find_entry(_CALCULATOR_MODEL)
    assert entry is not None
    rows = []
    for preset in PRESETS:
        tensors = planned_tensors(entry.config, preset)
        cpu = estimate(entry.config, tensors, _CALCULATOR_CONTEXT)
        gpu = GpuEstimate(entry.config, tensors, cpu)
        smallest = gpu.smallest(common_cards())
        assert smallest is not None
        rows.append(
            (
                code(preset),
                data_size(cpu.weights, 2),
                f"{data_size(cpu.cache)} ({cpu.kv})",
                data_size(cpu.workspace),
                data_size(cpu.total, 2),
                f"{data_size(gpu.memory.cache)} ({gpu.kv})",
                data_size(gpu.memory.workspace),
                data_size(gpu.memory.total, 2),
                smallest.name,
            )
        )
    head = (
        "Preset",
        "Weights",
        "KV cache",
        "Work space",
        "Total",
        "GPU: KV cache",
        "Work space",
        "Total",
        "Smallest card",
    )
    return table(head, rows) + "\n"


def which_model() -> str:
    """Return the table of machines, which README and the guide show."""
    rows = []
    for machine, memory in _MACHINES.items():
        largest = [fitting_machine(memory, preset=preset)[-1] for preset in _MACHINE_PRESETS]
        rows.append((machine, *(f"{code(model.name)} ({data_size(model.needed)})" for model in largest)))
    return table(["Memory", *(f"largest at {code(preset)}" for preset in _MACHINE_PRESETS)], rows) + "\n"
