"""Make the models of the comparison: ours by the command line, rivals by their own algorithms."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import qwchat
from benchmarks.gguf_files import write_bf16_gguf
from benchmarks.llama_parity import Rival
from benchmarks.rivals import awq_encoder, gptq_encoder
from benchmarks.rivals.float_pass import Tensors, read_checkpoint, read_tensors
from benchmarks.rivals.importance import importance_matrix
from benchmarks.rivals.measuring import Yardstick, as_data, scored
from benchmarks.rivals.packed_writer import Method, write_packed, write_values
from quant.calibration import Calibration, StatisticsWriter, open_statistics
from quant.container import open_model
from quant.conversion import CompilingQuantiser, WaitingForCompiler, convert_source
from quant.formats import find_format
from quant.policy import ConversionSpec, conversion_spec
from quant.sources import Source, open_source
from qwchat.calibration.collect import collect, statistics_header
from qwchat.calibration.sequential import SequentialCalibration
from qwchat.calibration.source_tensors import SourceTensors

THREADS = 2
LLAMA_KINDS = ("Q4_0", "Q4_K_M", "IQ4_XS", "Q8_0")
WEIGHTED = (*LLAMA_KINDS[:3],)
"""Kinds that an importance matrix changes."""
STATIC, SEQUENTIAL = "calibrated", "sequential"


@dataclass(frozen=True)
class Ours:
    """One of our models: preset, calibration (None, `calibrated` or `sequential`) and bits of the activations."""

    preset: str
    calibration: str | None = None
    activations: int = 8

    @property
    def name(self) -> str:
        """Name in the table."""
        words = [self.preset, self.calibration or "", f"{self.activations}-bit activations"]
        return ", ".join(word for word in words[: 2 + (self.activations != 8)] if word)


OURS = (
    *(Ours(preset) for preset in ("q4-small", "q4", "q8")),
    Ours("q8", activations=16),
    Ours("q8", STATIC, activations=16),
    *(Ours(preset, calibration) for calibration in (STATIC, SEQUENTIAL) for preset in ("q4-small", "q4")),
)


@dataclass
class Result:
    """One row of the table.

    Attributes:
        name: contender.
        ours: whether the format is ours.
        bits: whole-model bits per weight.
        seconds: wall time of the encoder alone.
        calibration_seconds: wall time of what it needs beforehand: statistics, importance matrix.
        weights: figures of the dequantised weights with float activations, by kind of text.
        engine: those of our engine with its own activations; empty if it cannot keep the weights exactly.
        own: those of llama.cpp on its own file; empty for other contenders.
    """

    name: str
    ours: bool
    bits: float
    seconds: float
    calibration_seconds: float = 0.0
    weights: dict[str, dict[str, object]] = field(default_factory=dict)
    engine: dict[str, dict[str, object]] = field(default_factory=dict)
    own: dict[str, dict[str, object]] = field(default_factory=dict)


def conversion_seconds(
    source: Source, folder: Path, spec: ConversionSpec, calibration: Calibration | None = None
) -> float:
    """Convert and return the seconds, those of compiling loops on first use aside."""
    last = time.perf_counter()
    seconds, counted = 0.0, True
    for event in convert_source(source, folder, spec, threads=THREADS, calibration=calibration):
        now = time.perf_counter()
        seconds += now - last if counted else 0.0
        last, counted = now, not isinstance(event, CompilingQuantiser | WaitingForCompiler)
    return seconds


class Comparison:
    """Contenders of one checkpoint.

    Args:
        checkpoint: bf16 checkpoint.
        work: folder for files, emptied first.
        yardstick: windows with the reference's logits.
        calibration: windows of token ids for everything that is calibrated.
        rival: llama.cpp.
    """

    def __init__(
        self, checkpoint: Path, work: Path, yardstick: Yardstick, calibration: list[list[int]], rival: Rival
    ) -> None:
        self._checkpoint, self._work, self._yardstick = checkpoint, work, yardstick
        self._calibration, self._rival = calibration, rival
        self._config, self._tensors = read_checkpoint(checkpoint)
        self._pieces = [np.array(window, np.int64) for window in calibration]
        self._statistics_seconds = 0.0
        self._seconds: dict[str, tuple[float, float]] = {}
        self._parameters = sum(values.size for values in self._tensors.values())

    def ours(self, chosen: Callable[[str], bool]) -> Iterator[Result]:
        """Yield the results of our formats whose names are chosen."""
        for each in OURS:
            if chosen(each.name):
                yield self._ours(each)

    def llama(self, chosen: Callable[[str], bool]) -> Iterator[Result]:
        """Yield the results of llama.cpp's types, each with and without an importance matrix."""
        plan = [(kind, weighted) for kind in LLAMA_KINDS for weighted in (False, True)[: 1 + (kind in WEIGHTED)]]
        names = {f"{kind} + imatrix" if weighted else kind: (kind, weighted) for kind, weighted in plan}
        if not any(map(chosen, names)):
            return
        source, started = self._work / "bf16.gguf", time.perf_counter()
        write_bf16_gguf(self._checkpoint, source)
        importance = importance_matrix(self._config, self._tensors, self._calibration)
        seconds = time.perf_counter() - started
        for name, (kind, weighted) in names.items():
            if chosen(name):
                file = self._work / f"{kind}{'-imatrix' if weighted else ''}.gguf"
                made = self._rival.encode(source, file, kind, importance if weighted else None)
                yield self._of_gguf(name, file, made["seconds"], seconds if weighted else 0.0)

    def plain(self, chosen: Callable[[str], bool]) -> Iterator[Result]:
        """Yield the results of GPTQ and AWQ."""
        encoders: Mapping[Method, Any] = {"gptq": gptq_encoder.encode_model, "awq": awq_encoder.encode_model}
        for method, encode in encoders.items():
            name = f"{method.upper()} g128"
            if not chosen(name):
                continue
            tensors, started = dict(self._tensors), time.perf_counter()
            codes = dict(encode(self._config, tensors, self._calibration))
            folder, seconds = self._work / method, time.perf_counter() - started
            size = write_packed(self._checkpoint, folder, method, codes, tensors)
            found = Result(name, False, 8 * size / self._parameters, seconds)
            found.weights = self._of_values(read_checkpoint(folder)[1], method)
            yield found

    def _ours(self, each: Ours) -> Result:
        folder = self._work / "-".join(filter(None, (each.preset, each.calibration)))
        seconds, calibration_seconds = self._convert(each, folder)
        opened = open_model(folder)
        found = Result(each.name, True, opened.bits_per_weight, seconds, calibration_seconds)
        names = opened.manifest["tensors"]
        tensors = {name: find_format(opened.tensor(name).format).dequantise(opened.tensor(name)) for name in names}
        found.weights = self._of_values(tensors, folder.name)
        found.engine = self._of_model(folder, each.activations)
        return found

    def _convert(self, each: Ours, folder: Path) -> tuple[float, float]:
        """Convert; return the seconds of the conversion and of the statistics before it."""
        if folder.name not in self._seconds:  # Otherwise the same weights with other activations.
            with open_source(self._checkpoint) as source:
                calibration: Calibration | None = None
                seconds = 0.0
                if each.calibration == STATIC:
                    calibration, seconds = self._statistics(source)
                elif each.calibration == SEQUENTIAL:
                    calibration = SequentialCalibration(SourceTensors(source, THREADS), self._pieces, THREADS)
                spec = conversion_spec(each.preset)
                self._seconds[folder.name] = conversion_seconds(source, folder, spec, calibration), seconds
        return self._seconds[folder.name]

    def _statistics(self, source: Source) -> tuple[Calibration, float]:
        """Return the statistics of the calibration text, and the seconds of the pass that wrote them."""
        path = self._work / "statistics"
        if not path.exists():
            started, tensors = time.perf_counter(), SourceTensors(source, THREADS)
            header = statistics_header(source.config, source.fingerprint, self._pieces, "windows of the comparison")
            with StatisticsWriter(path) as writer:
                writer.open_folder(resume=False)
                writer.begin(header)
                for _ in collect(tensors, self._pieces, writer, THREADS):
                    pass
                writer.publish(force=False)
            self._statistics_seconds = time.perf_counter() - started
        return open_statistics(path, source.config, source.fingerprint), self._statistics_seconds

    def _of_gguf(self, name: str, file: Path, seconds: float, importance_seconds: float) -> Result:
        with open_source(file) as source:
            bits = 8 * source.total_bytes / self._parameters
            found = Result(name, False, bits, seconds, importance_seconds)
            found.weights = self._of_values(read_tensors(source), file.stem)
            imported = self._work / f"{file.stem}-imported"
            for _ in convert_source(source, imported, conversion_spec(quantised=True), threads=THREADS):
                pass
        entries = open_model(imported).manifest["tensors"].values()
        if not any(entry.get("requantised_from") for entry in entries):
            found.engine = self._of_model(imported, 8)
        windows = self._yardstick.windows
        logits = self._rival.logits(file, [window.ids[:-1] for window in windows])
        found.own = as_data(self._yardstick.compare(scored(logits, windows, self._yardstick.vocabulary)))
        return found

    def _of_values(self, tensors: Tensors, name: str) -> dict[str, dict[str, object]]:
        """Return the figures of values in f32, with float activations."""
        values, folder = self._work / f"{name}-values", self._work / f"{name}-dense"
        write_values(self._checkpoint, values, tensors)
        with open_source(values) as source:
            for _ in convert_source(source, folder, conversion_spec("dense"), threads=THREADS):
                pass
        shutil.rmtree(values)
        found = self._of_model(folder, 8)
        shutil.rmtree(folder)
        return found

    def _of_model(self, folder: Path, activations: int) -> dict[str, dict[str, object]]:
        """Return the figures of a model folder in our engine."""
        options: dict[str, Any] = {} if activations == 8 else {"activations": activations}
        with qwchat.load(folder, device="cpu", kv="f32", verify=False, threads=THREADS, **options) as model:
            return as_data(self._yardstick.measure(model.logits))
