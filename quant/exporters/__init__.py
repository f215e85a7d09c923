"""Export model folders to the formats of other programs.

`export` is the public function. A kind is one function that plans the files (`quant.exporters.export_plan`); the
pipeline encodes, writes and checks them. `quant.exporters.export_events` defines the events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from quant.container import ModelFolder, open_model
from quant.destination import check_destination
from quant.errors import ArgumentError, ContainerError, FormatError
from quant.exporters.checkpoint import plan_checkpoint
from quant.exporters.export_events import ExportEvent, ExportFinished, ExportNotice, ExportPlanned
from quant.exporters.export_plan import ExportPlan, ExportSpec
from quant.exporters.export_writer import ExportWriter, is_export
from quant.exporters.gguf_model import plan_gguf
from quant.exporters.pack_quantized import plan_pack_quantized
from quant.exporters.pipeline import write_files
from quant.machine import usable_processors
from quant.sources.source import FLOAT_TYPES

KINDS: dict[str, Callable[[ModelFolder, ExportSpec], ExportPlan]] = {
    "safetensors": plan_checkpoint,
    "compressed-tensors": plan_pack_quantized,
    "gguf": plan_gguf,
}
"""Function that plans an export, by kind."""

__all__ = ["KINDS", "export"]


def export(
    model_folder: str | Path,
    destination: str | Path,
    kind: str,
    *,
    dtype: str | None = None,
    bits: int | None = None,
    shard_bytes: int = ExportSpec.shard_bytes,
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    threads: int | None = None,
) -> Generator[ExportEvent, None, None]:
    """Export the model folder `model_folder` to the folder `destination`.

    The work is done while the caller iterates. Closing the iterator stops the export and keeps the finished files for
    `resume`. After an error, `destination` is as it was before.

    Args:
        model_folder: model folder.
        destination: folder to create; its parent folder must exist.
        kind: one of `KINDS`.
        dtype: type of the tensors that are stored unquantised: "bf16", "f16" or "f32". None: that of the kind.
        bits: 4 or 8: re-quantise matrices that the kind cannot store unchanged to so many bits.
        shard_bytes: most bytes of the tensors of a file.
        resume: continue what an earlier attempt left.
        dry_run: stop after `ExportPlanned` and notices without writing anything.
        force: replace an existing export once the new one is complete.
        threads: number of encoding threads. None: one per processor that this process may use.

    Yields:
        `ExportPlanned` first, then progress, and `ExportFinished` last.

    Raises:
        ArgumentError: an argument is invalid, or the destination is in use.
        ContainerError: the model folder is missing or damaged.
        FormatError: the kind cannot hold a tensor.
        DiskFullError: the disk of the destination is full.
    """
    _check_arguments(kind, dtype, bits, shard_bytes, threads)
    began = time.monotonic()
    model = open_model(model_folder)
    plan = KINDS[kind](model, ExportSpec(dtype, bits, shard_bytes))
    sizes = {file.name: file.nbytes for file in plan.weights}
    total = sum(sizes.values()) + sum(map(len, plan.files.values()))
    yield ExportPlanned(sum(model.tensor(name).nbytes for name in model.names), total, sizes, plan.tensors)
    yield from map(ExportNotice, plan.notices)
    if dry_run:
        return
    options = {"dtype": dtype, "bits": bits, "shard_bytes": shard_bytes}
    identity = {"name": model.manifest["source"]["name"], "fingerprint": model.fingerprint}
    header = {"kind": kind, "model": identity, "options": options}
    with ExportWriter(Path(destination).resolve(), plan, header) as writer:
        yield from _write(model, plan, writer, resume=resume, force=force, threads=threads or len(usable_processors()))
    yield ExportFinished(writer.destination, writer.errors, writer.checksums, time.monotonic() - began)


def _write(
    model: ModelFolder, plan: ExportPlan, writer: ExportWriter, *, resume: bool, force: bool, threads: int
) -> Iterator[ExportEvent]:
    if resume and writer.is_published():
        yield ExportNotice(f"{writer.destination} is already complete")
        return
    check_destination(writer.destination, model.path, force, is_replaceable=is_export, content="an export")
    yield from map(ExportNotice, writer.begin(resume))
    try:
        yield from write_files(model, plan, writer, threads)
    except (ContainerError, FormatError):
        writer.discard()
        raise
    writer.publish(force)


def _check_arguments(kind: str, dtype: str | None, bits: int | None, shard_bytes: int, threads: int | None) -> None:
    if kind not in KINDS:
        raise ArgumentError(f"unknown kind of export {kind!r}; choose one of {', '.join(KINDS)}")
    if dtype not in (None, *FLOAT_TYPES):
        raise ArgumentError(f"type {dtype!r} is not supported; choose one of {', '.join(FLOAT_TYPES)}")
    if bits not in (None, 4, 8):
        raise ArgumentError(f"{bits} bits are not supported; choose 4 or 8")
    if shard_bytes < 1:
        raise ArgumentError(f"files of {shard_bytes} bytes are not possible; give a larger size")
    if threads is not None and threads < 1:
        raise ArgumentError(f"{threads} threads are not enough; give 1 or more")
