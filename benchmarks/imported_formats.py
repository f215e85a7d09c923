"""Measure decode and prefill in the formats of imported tensors beside q4 and q8.

    python -m benchmarks.imported_formats
    python -m benchmarks.imported_formats --formats q4 lin4 k4 --rounds 40 --results FILE

The model has layers of Qwen2-1.5B's shape and a smaller vocabulary; every matrix is in the format that is measured. Its
codes are random bytes, and each tensor has memory of its own, so that decode reads as much as from a file.

In each round a format is measured between two measurements of its reference, q4 or q8, and compared with their mean. A
ratio is the median of the rounds, and rates count the CPU time of one thread, so that other programs on the machine
disturb neither side much. `decode` compares bytes of weights per second, since formats of the same bits differ in the
bits of their scales; `prefill` compares tokens per second.

Prints a table. The exit code is 1 if a ratio is below 0.9.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.context_timing import time_reply
from benchmarks.measurements import Conditions, Limit, Measurement, add_results_option, append
from benchmarks.random_model import shape_config
from quant.families import expected_tensors
from quant.formats import GroupedFormat, PackedTensor, find_format, layout
from quant.formats.integer import BYTE_BITS
from quant.model_config import ModelConfig
from qwchat.chat.view.table import format_table
from qwchat.cpu.build import build_decoder
from qwchat.generation.cached_context import CachedContext

BAR = 0.9
REFERENCES = {4: "q4", 8: "q8"}
FORMATS = ("lin4", "min4", "k4", "iq4", "iq4k", "lin8", "k8")
LAYERS, VOCABULARY, CONTEXT = 6, 32768, 512
PROMPT, REPLY = 256, 12  # tokens of a measurement
_SHAPE: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
_BLOCK_BYTES = 4 << 20
_SPREAD = 0.5  # length of a row of weights, as in `benchmarks.random_model`


class ResidentModel:
    """Source of tensors whose matrices are all in one format; implements `TensorSource`.

    Args:
        config: shapes of the model.
        name: the format.
    """

    path = Path("random-model")

    def __init__(self, config: ModelConfig, name: str) -> None:
        self.config = config
        self._block = np.random.default_rng(0).integers(0, 256, _BLOCK_BYTES, np.uint8)
        self._tensors = {tensor: self._made(name, shape) for tensor, shape in expected_tensors(config).items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(packed.nbytes for packed in self._tensors.values())

    def tensor(self, name: str) -> PackedTensor:
        """Return the tensor `name`."""
        return self._tensors[name]

    def _made(self, name: str, shape: tuple[int, ...]) -> PackedTensor:
        if len(shape) == 1:
            return PackedTensor("vector", shape, 0, {"values": np.ones(shape, np.float32)})
        fmt = find_format(name)
        assert isinstance(fmt, GroupedFormat)
        group = fmt.group_sizes[0]
        spread = _SPREAD / math.sqrt(shape[1]) / (fmt.largest / 4)
        parts = {
            part: self._part(fmt, part, dtype, sizes, spread)
            for part, (dtype, sizes) in layout(name, shape, group, fmt.stores_zeros).items()
        }
        return PackedTensor(name, shape, group, parts)

    def _part(
        self, fmt: GroupedFormat, part: str, dtype: np.dtype[Any], shape: tuple[int, ...], spread: float
    ) -> NDArray[Any]:
        """Return random bytes, or for floats the number that gives weights the standard deviation `spread`."""
        if dtype.kind == "f":
            middle = fmt.largest_code / 2 if part.endswith("minimums") else 1
            byte_scales = 1 if fmt.scale == "float16" else 128
            return np.full(shape, spread * middle / byte_scales, dtype)
        found = np.resize(self._block, math.prod(shape))
        if part == "zeros" or (part == "codes" and fmt.stored_bits == BYTE_BITS):
            found &= fmt.largest_code
        return found.view(dtype).reshape(shape)


@dataclass
class Subject:
    """A format and its rates: bytes of weights per second in decode, tokens per second in prefill, by round."""

    name: str
    context: CachedContext
    nbytes: int
    rates: dict[str, list[float]] = field(default_factory=lambda: {"decode": [], "prefill": []})
    ratios: dict[str, list[float]] = field(default_factory=lambda: {"decode": [], "prefill": []})

    @classmethod
    def of(cls, config: ModelConfig, name: str) -> Subject:
        """Make the model of a format, and evaluate it once."""
        model = ResidentModel(config, name)
        subject = cls(name, CachedContext(build_decoder(model, threads=1, context=CONTEXT, kv="f32")), model.nbytes)
        subject.measure()
        return subject

    def measure(self) -> dict[str, float]:
        """Return the rates of one prompt and of the tokens after it, per second of CPU time."""
        prefill, decode = time_reply(self.context, PROMPT, REPLY, time.process_time)
        return {"decode": self.nbytes * REPLY / decode, "prefill": PROMPT / prefill}


def measure(config: ModelConfig, names: Sequence[str], rounds: int) -> list[Subject]:
    """Measure formats beside their references, and return them all; the references come first."""
    references = {bits: Subject.of(config, name) for bits, name in REFERENCES.items()}
    subjects = [Subject.of(config, name) for name in names]
    for _ in range(rounds):
        for subject in subjects:
            fmt = find_format(subject.name)
            assert isinstance(fmt, GroupedFormat)
            reference = references[fmt.stored_bits]
            before, found, after = reference.measure(), subject.measure(), reference.measure()
            for cell, rate in found.items():
                subject.rates[cell].append(rate)
                subject.ratios[cell].append(2 * rate / (before[cell] + after[cell]))
                reference.rates[cell] += before[cell], after[cell]
    return [*references.values(), *subjects]


def as_table(subjects: Sequence[Subject]) -> str:
    """Return a table with a row per format."""
    rows = []
    for subject in subjects:
        cells = [f"{8 * subject.nbytes / 1e6:,.0f}"]
        for cell, scale in (("decode", subject.nbytes), ("prefill", 1)):
            cells.append(f"{statistics.median(subject.rates[cell]) / scale:,.1f}")
            ratios = subject.ratios[cell]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        rows.append((subject.name, *cells))
    head = ("format", "Mbit", "decode tok/s", "bytes/s, ratio", "prefill tok/s", "ratio")
    return format_table(head, rows, right=(1, 2, 3, 4, 5))


def as_measurements(subjects: Sequence[Subject], conditions: Conditions) -> list[Measurement]:
    """Return the ratios; their limit is that of the reference, 1."""
    return [
        Measurement(
            conditions,
            f"{LAYERS} layers of qwen2-1.5b",
            "qwchat",
            subject.name,
            cell,
            REPLY if cell == "decode" else PROMPT,
            statistics.median(ratios),
            "of the reference",
            min(ratios),
            max(ratios),
            Limit("reference", 1.0),
        )
        for subject in subjects
        for cell, ratios in subject.ratios.items()
        if ratios
    ]


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), help="formats to measure")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each format")
    add_results_option(parser)
    options = parser.parse_args()
    subjects = measure(shape_config("0.5B", **_SHAPE), options.formats, options.rounds)
    print(as_table(subjects))
    append(options.results, as_measurements(subjects, Conditions.of_this_run("imported_formats", 1)))
    ratios = [statistics.median(each) for subject in subjects for each in subject.ratios.values() if each]
    return int(min(ratios) < BAR)


if __name__ == "__main__":
    sys.exit(main())
