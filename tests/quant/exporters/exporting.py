"""Helpers that run exports and read what they wrote, without the project's own readers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quant.container import ModelFolder, open_model
from quant.conversion import convert_source
from quant.exporters import export
from quant.exporters.export_events import ExportEvent, ExportFinished, ExportNotice
from quant.families import parse_config
from quant.policy import conversion_spec
from quant.sources import QuantisedRows
from tests.quant.checkpoints import CONFIG, make_checkpoint, random_tensors, write_tokenizer
from tests.quant.converting import run as convert
from tests.quant.sources.memory import MemorySource, grouped

DTYPES: dict[str, Any] = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8"}


def model_of(folder: Path, seed: int = 0, **options: Any) -> ModelFolder:
    """Return a conversion of a random checkpoint; `config` and `dtype` are those of the checkpoint."""
    config, dtype = options.pop("config", None), options.pop("dtype", "bf16")
    checkpoint = make_checkpoint(folder / "checkpoint", seed=seed, config_overrides=config, dtype=dtype)
    convert(checkpoint, folder / "model", **options)
    return open_model(folder / "model")


def run(model: ModelFolder, destination: Path, kind: str, **options: Any) -> list[ExportEvent]:
    """Export to the end and return the events. Check that SHA256SUMS lists every other file."""
    events = list(export(model.path, destination, kind, **options))
    if not options.get("dry_run"):
        lines = (destination / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        assert sums == {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in destination.iterdir()
            if path.name != "SHA256SUMS"
        }
    return events


def finished(events: list[ExportEvent]) -> ExportFinished:
    """Return the last event of a complete export."""
    assert isinstance(events[-1], ExportFinished)
    return events[-1]


def notices(events: list[ExportEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, ExportNotice)]


def read_safetensors(folder: Path) -> dict[str, np.ndarray]:
    """Return every tensor of the safetensors files of a folder; bf16 as its bits. Check that tensors are aligned."""
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            assert name not in tensors
            dtype = np.dtype(DTYPES[entry["dtype"]])
            assert start % dtype.itemsize == 0
            tensors[name] = np.frombuffer(data[start:stop], dtype).reshape(entry["shape"])
    return tensors


class TokenizerSource(MemorySource):
    """Model made of arrays, with the tokenizer files of the folder that it is named after."""

    @property
    def files(self) -> Mapping[str, bytes]:
        return {**super().files, **{path.name: path.read_bytes() for path in Path(self._name).iterdir()}}


def imported_model(
    folder: Path, choose: Callable[[str, tuple[int, int]], QuantisedRows | None], **overrides: Any
) -> ModelFolder:
    """Return a model whose matrices are stored as `choose` gives them; None gives float values, which become q8."""
    values = {**CONFIG, **overrides}
    config = parse_config(values)
    contents: dict[str, Any] = {}
    for name, tensor in random_tensors(config).items():
        rows = choose(name, tensor.shape) if tensor.ndim == 2 else None
        contents[name] = tensor if rows is None else rows
    (folder / "tokenizer").mkdir(parents=True)
    write_tokenizer(folder / "tokenizer")
    source = TokenizerSource(values, contents, str(folder / "tokenizer"))
    for _ in convert_source(source, folder / "model", conversion_spec(quantised=True)):
        pass
    return open_model(folder / "model")


def random_grid(shape: tuple[int, int], bits: int, group_size: int, zeros: int | None, seed: int) -> QuantisedRows:
    """Return random codes with scales of both signs; zero points are random (None), all `zeros`, or not stored (-1)."""
    random = np.random.default_rng(seed)
    rows = grouped(shape, bits, group_size, random)
    parts = dict(rows.parts)
    parts["scales"] = (parts["scales"] * random.choice([-1, 1], parts["scales"].shape)).astype(np.float16)
    if zeros == -1:
        del parts["zeros"]
    elif zeros is not None:
        parts["zeros"] = np.full_like(parts["zeros"], zeros)
    return QuantisedRows(rows.format, group_size, parts)
