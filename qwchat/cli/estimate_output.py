"""Estimates as tables, on the CPU, on a GPU and on common cards, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.presets import DEFAULT_PRESET
from quant.units import data_size
from qwchat.cli.tables import Column, TableWriter

if TYPE_CHECKING:
    from qwchat.store.cards import Card
    from qwchat.store.gpu_estimate import GpuEstimate, Offload
    from qwchat.store.memory_estimate import MemoryEstimate

_SIZES = (
    Column("preset", style="bold"),
    Column("context", right=True),
    Column("KV", drop=2),
    Column("weights", right=True, drop=3),
    Column("KV cache", right=True, drop=4),
    Column("work space", right=True, drop=1),
    Column("total", right=True),
)
_SPEED = Column("tok/s", right=True, drop=5)
_CPU_COLUMNS = (*_SIZES, Column("fits", styles={"no": "red", "tight": "yellow", "yes": "green"}), _SPEED)
_GPU_COLUMNS = (*_SIZES, Column("smallest card", wrap=10), _SPEED)
_CARD_COLUMNS = (*_SIZES, Column("layers", right=True, styles={"all": "green", "none": "red"}), _SPEED)
_NEEDS_CPU = "A GPU cannot run it: some of its formats need the CPU."
_COMMON_COLUMNS = (
    Column("card", wrap=12, style="bold"),
    Column("memory", right=True, drop=1),
    Column("layers", right=True, styles={"all": "green", "none": "red"}),
    Column("tok/s", right=True),
)


@dataclass(frozen=True)
class MachineLimits:
    """Memory of a machine in bytes, and the bytes per second that its threads read; None where it is unknown."""

    memory: int | None
    bandwidth: float | None


@dataclass(frozen=True)
class Estimated:
    """Estimates of one preset and context window, on the CPU and on a GPU.

    `on_gpu` is False if a format needs the CPU.
    """

    preset: str
    layers: int
    cpu: MemoryEstimate
    gpu: GpuEstimate
    on_gpu: bool = True

    def tokens_per_second(self, machine: MachineLimits) -> float | None:
        """Return the most that the memory bandwidth allows on the CPU.

        None if the bandwidth is unknown, or if the disk decides since the model does not fit.
        """
        if machine.bandwidth is None or _fit(self.cpu.total, machine) == "no":
            return None
        return machine.bandwidth / self.cpu.bytes_per_token


def write_tables(
    tables: TableWriter,
    estimates: Sequence[Estimated],
    machine: MachineLimits,
    card: Card | None,
    *,
    with_common_cards: bool,
) -> None:
    """Write the tables: the CPU, the card or without one the smallest that holds everything, and common cards."""
    from qwchat.model.gpu_memory import CONTEXT_BYTES

    driver, for_gpu = f"about {data_size(CONTEXT_BYTES)} for its driver", [each for each in estimates if each.on_gpu]
    if card is None:
        on_gpu = tables.table(_GPU_COLUMNS, [_gpu_row(each, machine) for each in for_gpu])
        title = f"On a GPU, with {driver}:"
    else:
        on_gpu = tables.table(_CARD_COLUMNS, [_card_row(each, card, machine) for each in for_gpu])
        title = f"On {card.name} with {_facts(card.memory, card.bandwidth)}, {driver}:"
    facts = _facts(machine.memory, machine.bandwidth)
    parts = [
        tables.paragraph(f"On the CPU with {facts}:" if facts else "On the CPU:"),
        tables.table(_CPU_COLUMNS, [_cpu_row(each, machine) for each in estimates]),
        *([tables.paragraph(title), on_gpu] if for_gpu else [tables.paragraph(_NEEDS_CPU)]),
    ]
    if with_common_cards and for_gpu:
        shown = _shown_on_common_cards(for_gpu)
        parts += [
            tables.paragraph(f"On common cards, {shown.preset} with {shown.cpu.context:,} tokens:"),
            tables.table(_COMMON_COLUMNS, list(_common_rows(shown, machine))),
        ]
    tables.write(*parts)


def _facts(memory: int | None, bandwidth: float | None) -> str:
    """Return what is known: "16.0 GB of memory, 30.0 GB/s"."""
    facts = [] if memory is None else [f"{data_size(memory)} of memory"]
    return ", ".join(facts if bandwidth is None else [*facts, f"{data_size(bandwidth)}/s"])


def as_data(estimate: Estimated, machine: MachineLimits, cards: Sequence[Card]) -> dict[str, object]:
    """Return one estimate for JSON, with what each card holds."""
    cpu, gpu = estimate.cpu, estimate.gpu
    return {
        "preset": estimate.preset,
        "context": cpu.context,
        "kv": cpu.kv,
        "weights": cpu.weights,
        "cache": cpu.cache,
        "work_space": cpu.workspace,
        "total": cpu.total,
        "fits": _fit(cpu.total, machine),
        "bytes_per_token": cpu.bytes_per_token,
        "tokens_per_second": _rounded(estimate.tokens_per_second(machine)),
        "gpu": {
            "kv": gpu.kv,
            "weights": gpu.memory.weights,
            "cache": gpu.memory.cache,
            "work_space": gpu.memory.workspace,
            "total": gpu.memory.total,
            "bytes_per_token": gpu.bytes_per_token,
            "cards": [_offload_data(gpu.offload(card, machine.bandwidth), estimate.layers) for card in cards],
        }
        if estimate.on_gpu
        else None,
    }


def _offload_data(offload: Offload, layers: int) -> dict[str, object]:
    return {
        "name": offload.card.name,
        "memory": offload.card.memory,
        "bandwidth": offload.card.bandwidth,
        "layers": offload.layers,
        "of_layers": layers,
        "whole": offload.whole,
        "tokens_per_second": _rounded(offload.tokens_per_second),
    }


def _cpu_row(estimate: Estimated, machine: MachineLimits) -> tuple[str, ...]:
    cpu = estimate.cpu
    sizes = (cpu.kv, *map(data_size, (cpu.weights, cpu.cache, cpu.workspace, cpu.total)))
    speed = _speed(estimate.tokens_per_second(machine))
    return estimate.preset, f"{cpu.context:,}", *sizes, _fit(cpu.total, machine) or "", speed


def _gpu_sizes(estimate: Estimated) -> tuple[str, ...]:
    memory = estimate.gpu.memory
    sizes = map(data_size, (memory.weights, memory.cache, memory.workspace, memory.total))
    return estimate.preset, f"{estimate.cpu.context:,}", estimate.gpu.kv, *sizes


def _gpu_row(estimate: Estimated, machine: MachineLimits) -> tuple[str, ...]:
    from qwchat.store.cards import common_cards

    card = estimate.gpu.smallest(common_cards())
    if card is None:
        return *_gpu_sizes(estimate), "none", ""
    return *_gpu_sizes(estimate), card.name, _speed(estimate.gpu.offload(card, machine.bandwidth).tokens_per_second)


def _card_row(estimate: Estimated, card: Card, machine: MachineLimits) -> tuple[str, ...]:
    offload = estimate.gpu.offload(card, machine.bandwidth)
    return *_gpu_sizes(estimate), _layers(offload, estimate.layers), _speed(offload.tokens_per_second)


def _shown_on_common_cards(estimates: Sequence[Estimated]) -> Estimated:
    """Return the estimate of the default preset, or the first one."""
    return next((each for each in estimates if each.preset == DEFAULT_PRESET), estimates[0])


def _common_rows(estimate: Estimated, machine: MachineLimits) -> Iterator[tuple[str, ...]]:
    from qwchat.store.cards import common_cards

    for card in common_cards():
        offload = estimate.gpu.offload(card, machine.bandwidth)
        speed = _speed(offload.tokens_per_second)
        yield card.name, data_size(card.memory), _layers(offload, estimate.layers), speed


def _layers(offload: Offload, layers: int) -> str:
    if offload.whole:
        return "all"
    return f"{offload.layers} of {layers}" if offload.layers else "none"


def _fit(total: int, machine: MachineLimits) -> str | None:
    from qwchat.store.memory_estimate import fit

    return None if machine.memory is None else fit(total, machine.memory)


def _speed(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)
