"""Compile units to PTX, or compare the PTX in the package with the sources.

`python -m qwchat.cuda.kernels [--check] [UNIT...]` needs the extra `cuda-dev`. Without UNIT it takes all units, and
removes the PTX of units that are not in the catalogue. Exit code 1: the PTX differs from the sources.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from quant.machine import usable_processors
from qwchat.cuda.kernels.sources import digest
from qwchat.cuda.kernels.toolchain import ISA, compile_unit
from qwchat.cuda.kernels.unit import Kernel
from qwchat.cuda.kernels.unit_catalogue import Entry, all_units
from qwchat.cuda.manifest import PTX_FOLDER

_COMPILERS = ("numba-cuda", "llvmlite", "nvidia-cuda-nvcc-cu12")


def main(arguments: list[str]) -> int:
    """Compile or compare; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qwchat.cuda.kernels", description="Compile the CUDA kernels to PTX."
    )
    parser.add_argument("--check", action="store_true", help="compare with the package and write nothing")
    parser.add_argument("units", nargs="*", metavar="UNIT", help="units to compile (default: all)")
    given = parser.parse_args(arguments)
    units = all_units()
    unknown = sorted(set(given.units) - set(units))
    if unknown:
        parser.error(f"no unit is named {', '.join(unknown)}; there are {', '.join(units)}")
    names = given.units or list(units)
    with ProcessPoolExecutor(min(len(names), len(usable_processors())), multiprocessing.get_context("fork")) as pool:
        compiled = pool.map(_compile, names, itertools.repeat(given.check))
        differing = [file for files in compiled for file in files]
    if not given.units:
        differing += _remove_others(set(units), given.check)
    if given.check:
        for file in differing:
            print(f"{file.relative_to(PTX_FOLDER)} differs from its sources; run python -m qwchat.cuda.kernels")
    return int(given.check and bool(differing))


def _compile(unit_name: str, check: bool) -> list[Path]:
    """Compile a unit for its targets; write the files that differ, unless `check`. Return those."""
    entry = all_units()[unit_name]
    texts = {target: compile_unit(unit, target) for target, unit in entry.variants.items()}
    name = entry.variants[min(entry.variants)].name
    contents = {PTX_FOLDER / f"sm_{target}" / f"{name}.ptx": text for target, text in texts.items()}
    contents[PTX_FOLDER / "manifest" / f"{name}.json"] = _manifest(entry, texts)
    differing = [file for file, text in contents.items() if not file.is_file() or file.read_text("utf-8") != text]
    for file in differing:
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(contents[file], encoding="utf-8")
            print(file.relative_to(PTX_FOLDER))
    return differing


def _manifest(entry: Entry, texts: dict[int, str]) -> str:
    kernels = entry.variants[min(entry.variants)].kernels
    record = {
        "sources": digest(entry.module),
        "module": entry.module,
        "toolchain": {name: importlib.metadata.version(name) for name in _COMPILERS},
        "isa": {str(target): ISA[target] for target in texts},
        "kernels": {kernel.name: _kernel_record(kernel, texts) for kernel in kernels},
    }
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def _kernel_record(kernel: Kernel, texts: dict[int, str]) -> dict[str, Any]:
    return {
        "parameters": kernel.parameters,
        "threads": kernel.threads,
        "blocks_per_sm": kernel.blocks_per_sm,
        "shared_bytes": {str(target): _shared_bytes(text, kernel.name) for target, text in texts.items()},
    }


def _shared_bytes(text: str, kernel: str) -> int:
    """Return the bytes of the kernel's shared arrays, laid out in order."""
    total = 0
    for align, size in re.findall(rf"^\.shared \.align (\d+) \.b8 {kernel}_shared_\d+\[(\d+)\]", text, re.M):
        total = -(-total // int(align)) * int(align) + int(size)
    return total


def _remove_others(names: set[str], check: bool) -> list[Path]:
    """Remove the files of units that are not in the catalogue, unless `check`. Return them."""
    files = [*PTX_FOLDER.glob("sm_*/*.ptx"), *PTX_FOLDER.glob("manifest/*.json")]
    others = [file for file in files if file.stem not in names]
    for file in others:
        if not check:
            file.unlink()
    return others


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
