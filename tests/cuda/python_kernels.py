"""Kernels that are Python functions, with PTX that only declares them: for tests of the host code.

Each function is called once per launch, as `function(memory, grid, threads, **parameters)`.
"""

from __future__ import annotations

import inspect
import json

TYPES = {"l": "u64", "i": "u32", "f": "f32"}


def declare(folder, kernels, *, target=90, written_target=None, version="7.8", threads=64, overlap=True):
    """Write a manifest and one PTX unit per kernel into `folder`.

    Args:
        folder: the PTX folder.
        kernels: functions; the annotation of each parameter after the third is its letter.
        target: architecture.
        written_target: architecture that the PTX names, if it differs.
        version: of the PTX.
        threads: of each block.
        overlap: whether the kernels wait for their predecessor.
    """
    (folder / f"sm_{target}").mkdir(parents=True)
    (folder / "manifest").mkdir()
    for function in kernels:
        name, parameters = function.__name__, list(inspect.signature(function).parameters.values())[3:]
        record = {
            "parameters": [[each.name, each.annotation] for each in parameters],
            "threads": threads,
            "blocks_per_sm": 1,
            "shared_bytes": {str(target): 0},
        }
        (folder / "manifest" / f"unit_{name}.json").write_text(json.dumps({"kernels": {name: record}}))
        declared = ",\n".join(f".param .{TYPES[each.annotation]} {name}_{each.name}" for each in parameters)
        wait = "griddepcontrol.wait;\n" if overlap else ""
        head = f".version {version}\n.target sm_{written_target or target}\n.address_size 64\n"
        text = f"{head}.entry {name}(\n{declared}\n)\n{{\n{wait}ret;\n}}\n"
        (folder / f"sm_{target}" / f"unit_{name}.ptx").write_text(text)


def executor(kernels):
    """Return what a FakeDriver executes launches of `kernels` with."""
    functions = {function.__name__: function for function in kernels}

    def execute(ptx, name, memory, grid, threads, values, shared_bytes):
        functions[name](memory, grid, threads, *values)

    return execute
