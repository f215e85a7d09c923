"""`qwchat sensitivity`: how far each matrix moves the predictions of a model in each format."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from qwchat import models_folder
from qwchat.characters import sanitise_name
from qwchat.chat.formatting import duration
from qwchat.chat.view.progress import byte_progress
from qwchat.cli.default_file import default_file
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import compile_kernels
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.sensitivity_options import SensitivityOptions
from qwchat.cli.setup_progress import SetupProgress
from qwchat.cli.streams import Streams, read_stdin
from qwchat.errors import ModelError, QwchatError, UsageError
from qwchat.limits import MAX_THREADS
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from quant.sources import Source
    from qwchat.evaluation.check_texts import EncodedTexts
    from qwchat.evaluation.matrix_divergence import Step
    from qwchat.evaluation.measurement_journal import MeasurementJournal

FORMATS = ("q4", "q6", "q8")
SUFFIX = ".sensitivities.json"
_TITLE = "measuring"
_RESIDENT_SHARE = 0.5  # of the free memory that the whole unquantised model may take


def run(options: SensitivityOptions, dependencies: Dependencies) -> int:
    """Measure, and write a file. Its path goes to standard output, everything else to standard error."""
    from quant.sources import check_tensors, open_source

    options.check()
    streams = Streams(quiet=options.quiet)
    located = models_folder.locate(options.model)
    if located.converted:
        raise ModelError(f"{located.name} is converted already: give the checkpoint that it was made from")
    name = models_folder.model_name(located.path)
    output = options.output or default_file(f"{name}{SUFFIX}")
    if output.exists() and not options.force:
        raise UsageError(f"{output} exists: use --force to overwrite it")
    with open_source(located.path) as source:
        check_tensors(source)
        texts = _texts(options, source)
        began = time.monotonic()
        measured = _Measurement(source, texts, options, dependencies, streams).run(output)
    result = _as_data(source, texts, measured)
    _write(output, result)
    if options.json:
        streams.write(json_line({"path": str(output.resolve()), **result}) + "\n")
    else:
        streams.screen.notice(f"measured {len(measured)} matrices in {duration(time.monotonic() - began)}")
        streams.write(f"{output.resolve()}\n")
    return ExitCode.OK


def _texts(options: SensitivityOptions, source: Source) -> EncodedTexts:
    """Return the texts as token ids: files, or the built-in ones."""
    from quant.families import parameter_count
    from qwchat.evaluation.check_texts import check_texts, text_windows, token_budget
    from qwchat.evaluation.documents import read_text

    texts = [read_stdin() if each == "-" else read_text(Path(each)) for each in options.files or []]
    vocab_size = source.config.vocab_size
    tokens = options.tokens or token_budget(parameter_count(source.config))
    with TemporaryDirectory(prefix="qwchat-") as folder:
        for name, data in source.files.items():
            (Path(folder) / name).write_bytes(data)
        if not texts:
            return check_texts(Path(folder), vocab_size, None, tokens)
        names = ", ".join(sanitise_name(each)[:100] for each in options.files or [])[:500]
        return text_windows(Path(folder), vocab_size, names, texts, tokens)


@dataclass(frozen=True)
class _Measurement:
    """A measurement of all matrices of a checkpoint."""

    source: Source
    texts: EncodedTexts
    options: SensitivityOptions
    dependencies: Dependencies
    streams: Streams

    def run(self, output: Path) -> dict[str, dict[str, float]]:
        """Return the divergence of each matrix in each format. Steps that are done are kept beside `output`."""
        from qwchat.evaluation.matrix_divergence import plan_steps
        from qwchat.evaluation.measurement_journal import MeasurementJournal

        steps = plan_steps(self.source.config, self.options.by)
        journal = MeasurementJournal(output.parent / f".{output.name}.journal", self._identity())
        if self.options.resume:
            known = journal.read()
            done = f"continuing: {len(journal.steps)} of {len(steps)} steps are done"
            self.streams.screen.notice(done if known else "there is nothing to resume; starting from the beginning")
        try:
            with journal:
                self._measure(steps, journal)
        except KeyboardInterrupt:
            self.streams.screen.hint("finished steps are kept: run the same command with --resume to continue")
            raise
        found: dict[str, dict[str, float]] = {}
        for values in journal.steps:
            for name, kind, divergence in values:
                found.setdefault(name, {})[kind] = divergence
        journal.delete()
        return found

    def _identity(self) -> str:
        """Return a hash of everything that the result depends on."""
        ids = [each.tolist() for each in self.texts.ids]
        parts = [self.source.fingerprint, ids, self.texts.vocab_size, FORMATS, self.options.by]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _measure(self, steps: Sequence[Step], journal: MeasurementJournal) -> None:
        from qwchat.calibration.source_tensors import SourceTensors
        from qwchat.cpu.kernels.thread_counts import default_threads
        from qwchat.evaluation.matrix_divergence import MatrixDivergence, layer_passes

        self._compile()
        config, streams = self.source.config, self.streams
        passes = [layer_passes(config, step, len(FORMATS)) for step in steps]
        threads = min(self.options.threads or resolve()["threads"] or default_threads(), MAX_THREADS)
        tensors = SourceTensors(self.source, threads)
        divergence = MatrixDivergence(tensors, self.texts, FORMATS, threads=threads, resident=_fits(self.source))
        with closing(divergence):
            began = time.monotonic()
            divergence.prepare()
            left = sum(passes[len(journal.steps) :])
            seconds = (time.monotonic() - began) / config.num_layers * left
            count, tokens = sum(len(step.groups) for step in steps) * len(FORMATS), sum(map(len, self.texts.ids))
            streams.screen.notice(f"{count} measurements on {tokens:,} tokens, about {duration(seconds)}")
            layer_bytes = self.source.total_bytes // (config.num_layers + 1)
            total, done = sum(passes) * layer_bytes, sum(passes[: len(journal.steps)]) * layer_bytes
            with byte_progress(_TITLE, total, streams.screen, rewritable=streams.rewritable) as progress:

                def advance(count: int) -> None:
                    nonlocal done
                    done += count * layer_bytes
                    progress.update(done, _TITLE)

                for number, step in enumerate(steps):
                    if number < len(journal.steps):
                        divergence.skip(step)
                    else:
                        journal.append(list(divergence.measure(step, advance)))

    def _compile(self) -> None:
        """Compile kernels and quantisers, with progress."""
        from quant.quantisers import machine_code

        compile_kernels(self.dependencies, self.streams)
        loops = {name: machine_code.loops_of(name) for name in FORMATS}
        if cost := machine_code.compiling_cost(loops.values()):
            with SetupProgress(self.streams, "quantisers", cost) as setup:
                for name, each in loops.items():
                    for event in machine_code.compile_loops(name, each):
                        setup.show(event)


def _fits(source: Source) -> bool:
    """Return whether all layers of the unquantised model may stay in memory."""
    from qwchat.cpu.memory import available_memory

    available = available_memory()
    return available is None or 2 * source.total_bytes < _RESIDENT_SHARE * available


def _as_data(source: Source, texts: EncodedTexts, measured: dict[str, dict[str, float]]) -> dict[str, object]:
    from quant.sensitivities import FORMAT_NAME

    return {
        "format": FORMAT_NAME,
        "source": {"name": source.name, "fingerprint": source.fingerprint},
        "text": {"name": texts.name, "tokens": sum(len(ids) - 1 for ids in texts.ids)},
        "tensors": measured,
    }


def _write(output: Path, result: dict[str, object]) -> None:
    from quant.safe_files import atomic_write

    try:
        with atomic_write(output, 0o644) as file:
            file.write(json.dumps(result, indent=1, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise QwchatError(f"cannot write {output} ({error.strerror}): give another --output") from error
