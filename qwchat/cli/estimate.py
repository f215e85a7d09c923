"""`qwchat estimate`: memory and speed of a model by preset and context window, before it is pulled or converted."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.presets import IMPORTED_PRESET, PRESETS
from qwchat import models_folder
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import requested_model
from qwchat.cli.estimate_output import Estimated, MachineLimits, as_data, write_tables
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.model_options import EstimateOptions
from qwchat.cli.streams import Streams
from qwchat.cli.tables import TableWriter
from qwchat.errors import UsageError
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.models_folder import LocatedModel

if TYPE_CHECKING:
    from quant.model_config import ModelConfig
    from qwchat.model.gpu_memory import Tensors


@dataclass(frozen=True)
class _Subject:
    """What is estimated: its name and its sizes.

    `preset` and `tensors` describe a converted model, `imported` what the import of a quantised source would store.
    """

    name: str
    config: ModelConfig
    preset: str | None = None
    tensors: Tensors | None = None
    imported: Tensors | None = None

    @property
    def presets(self) -> list[str]:
        """Presets to show."""
        if self.preset:
            return [self.preset]
        return [*([IMPORTED_PRESET] if self.imported else []), *PRESETS]

    def stored(self, preset: str) -> Tensors:
        """Return how the preset stores the tensors. Raises ArgumentError and FormatError."""
        from qwchat.store.memory_estimate import planned_tensors

        imported = self.imported if preset == IMPORTED_PRESET else None
        return self.tensors or imported or planned_tensors(self.config, preset)


def run(options: EstimateOptions, dependencies: Dependencies) -> int:
    """Write tables of presets and context windows, or one JSON object."""
    from qwchat.cpu.kernels.thread_counts import default_threads
    from qwchat.cpu.memory import total_memory
    from qwchat.store.cards import common_cards, find_card

    streams = Streams()
    asked = None if options.gpu is None else find_card(options.gpu)
    subject = _find(requested_model(options.model))
    threads = options.threads or default_threads()
    estimates = list(_estimates(subject, options, threads))
    machine = MachineLimits(total_memory(), dependencies.quick_bandwidth(threads))
    own = dependencies.card()
    if options.json:
        cards = [asked] if asked else [*([own] if own else []), *common_cards()]
        data = {
            "name": subject.name,
            "machine_memory": machine.memory,
            "machine_bandwidth": machine.bandwidth,
            "machine_card": None if own is None else asdict(own),
            "estimates": [as_data(each, machine, cards) for each in estimates],
        }
        streams.write(json_line(data) + "\n")
    else:
        write_tables(TableWriter(streams), estimates, machine, asked or own, with_common_cards=asked is None)
        streams.screen.hint("tok/s is the most that memory bandwidth allows, at the end of the context window")
    return ExitCode.OK


def _estimates(subject: _Subject, options: EstimateOptions, threads: int) -> Iterator[Estimated]:
    """Yield an estimate for each preset and context window. Raises UsageError and ArgumentError."""
    from quant.formats import find_format
    from qwchat.model.context_limits import context_limit
    from qwchat.store.gpu_estimate import GpuEstimate
    from qwchat.store.memory_estimate import contexts, estimate

    config, kv = subject.config, options.kv or "auto"
    activations = int(options.activations or DEFAULT_ACTIVATIONS)
    asked = _contexts(options.ctx or (), context_limit(config), subject.name)
    for preset in [options.preset] if options.preset and not subject.preset else subject.presets:
        tensors = subject.stored(preset)
        on_gpu = all(find_format(tensor.format).gpu for tensor in tensors.values())
        for context in contexts(config, asked):
            cpu = estimate(config, tensors, context, kv, threads, activations)
            yield Estimated(preset, config.num_layers, cpu, GpuEstimate(config, tensors, cpu, kv), on_gpu)


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
    from qwchat.errors import ModelError
    from qwchat.store.catalogue import find_entry

    path = Path(name)
    if path.name == "config.json" and path.is_file():
        return _Subject(str(path), _sizes(path))
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
    return _unconverted(located)


def _unconverted(located: LocatedModel) -> _Subject:
    """Read the sizes of a checkpoint or a GGUF file, and plan the import of quantised weights."""
    from quant.conversion import ConversionPlanned, convert
    from quant.formats import layout
    from quant.sources import open_source
    from qwchat.model.gpu_memory import TensorLayout

    with open_source(located.path) as source:
        if not source.quantised:
            return _Subject(located.name, source.config)
        config = source.config
    planned, *_ = convert(located.path, located.destination, dry_run=True)
    assert isinstance(planned, ConversionPlanned), "the plan is the first event"
    imported = {
        plan.name: TensorLayout(
            plan.format, plan.group_size, layout(plan.format, plan.shape, plan.group_size, plan.zeros)
        )
        for plan in planned.tensors
    }
    return _Subject(located.name, config, imported=imported)


def _on_hub(name: str) -> _Subject:
    """Fetch config.json of a repository, and nothing else."""
    from qwchat.store.hub import find_repository, parse_repository
    from qwchat.store.hub_download import read_small

    repository = find_repository(*parse_repository(name))
    with tempfile.TemporaryDirectory() as folder:
        read_small(repository, repository.files["config.json"], Path(folder))
        return _Subject(repository.name, _sizes(Path(folder, "config.json")))


def _sizes(path: Path) -> ModelConfig:
    """Read a config.json, also that of a quantised checkpoint. Raises CheckpointError."""
    from quant.errors import CheckpointError
    from quant.families import MAX_CONFIG_BYTES, parse_config
    from quant.safe_files import read_json_object

    values = read_json_object(path, CheckpointError, MAX_CONFIG_BYTES)
    values.pop("quantization_config", None)
    return parse_config(values, str(path))
