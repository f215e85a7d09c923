"""Machine code of the kernels, made from their PTX: registers, spills, loops. Needs `cuda-dev`, no GPU."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qwchat.cuda.manifest import TARGETS, ptx_text

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""GPUs that the kernels must compile for: Turing, Ampere (2), Ada, Hopper, Blackwell (2)."""

needs_cuda_dev = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="needs the extra cuda-dev: pip install '.[test,cuda-dev]'"
)
PIPES = {
    "alu": ("LOP3", "PRMT", "SHF", "IADD3", "ISETP", "SEL", "LEA", "SGXT", "I2FP", "VIADD", "PLOP3", "IMNMX", "VIMNMX"),
    "fma": ("IDP", "IMAD", "FFMA", "FMUL", "FADD", "MOV"),
    "memory": ("LDG", "LDS", "STS", "STG", "LDC", "ULDC", "LDSM", "LDGSTS"),
    "tensor": ("HMMA", "IMMA"),
    "conversion": ("I2F", "F2I", "F2F", "MUFU"),
}
"""Pipe -> opcodes that it executes, by the documentation of NVIDIA's profiler."""


@dataclass(frozen=True)
class Operation:
    """An instruction of a GPU.

    Attributes:
        opcode: Such as "LDG.E.128.CONSTANT".
        text: As disassembled.
        label: Label before it, or an empty string.
    """

    opcode: str
    text: str
    label: str


@dataclass(frozen=True)
class MachineCode:
    """A kernel compiled for an architecture.

    Attributes:
        kernel: Its name.
        registers: Registers per thread.
        stack: Bytes of local memory per thread.
        spills: Bytes that are moved to local memory and back because registers do not suffice.
        operations: All instructions.
    """

    kernel: str
    registers: int
    stack: int
    spills: int
    operations: list[Operation] = field(repr=False)

    def count(self, opcode: str) -> int:
        """Return how many instructions begin with `opcode`."""
        return sum(each.opcode.startswith(opcode) for each in self.operations)

    def loops(self) -> list[list[Operation]]:
        """Return the instructions of each loop: from a label to a branch back to it."""
        where = {each.label: index for index, each in enumerate(self.operations) if each.label}
        found = []
        for index, each in enumerate(self.operations):
            target = re.search(r"`\(([^)]+)\)", each.text) if each.opcode.startswith("BRA") else None
            if target and where.get(target[1], index) < index:
                found.append(self.operations[where[target[1]] : index + 1])
        return found

    def hot_loop(self, opcode: str) -> list[Operation]:
        """Return the loop with the largest share of instructions that begin with `opcode`."""
        return max(self.loops(), key=lambda loop: sum(each.opcode.startswith(opcode) for each in loop) / len(loop))


def opcodes(operations: list[Operation], parts: int = 1) -> Counter[str]:
    """Return how often each opcode occurs, by its first `parts` parts."""
    return Counter(".".join(each.opcode.split(".")[:parts]) for each in operations)


def pipes(operations: list[Operation]) -> Counter[str]:
    """Return how many instructions each pipe executes."""
    found: Counter[str] = Counter()
    for each in operations:
        head = each.opcode.split(".")[0]
        found[next((pipe for pipe, heads in PIPES.items() if head in heads), "other")] += 1
    return found


@functools.cache
def machine_code(unit: str, architecture: int) -> dict[str, MachineCode]:
    """Return the kernels of a unit of the package, compiled for an architecture (89 = sm_89)."""
    target = max(target for target in TARGETS if target <= architecture)
    return assemble(ptx_text(unit, target), architecture)


def assemble(ptx: str, architecture: int) -> dict[str, MachineCode]:
    """Return the kernels of PTX text, compiled for an architecture."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch=f"sm_{architecture}", ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    listing = _disassemble(linker.link("cubin").code)
    log = linker.get_info_log()
    found = {}
    for name, used in _resources(log).items():
        section = re.search(rf"^\.text\.{re.escape(name)}:$(.*?)(?=^\.text\.|\Z)", listing, re.S | re.M)
        found[name] = MachineCode(name, *used, _operations(section[1]))
    return found


def _resources(log: str) -> dict[str, tuple[int, int, int]]:
    """Return registers, stack and spilt bytes of each kernel in a log of ptxas."""
    found = {}
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'([\w$]+)'", part)[1]
        stack, stored, loaded = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        ).groups()
        found[name] = int(re.search(r"Used (\d+) registers", part)[1]), int(stack), int(stored) + int(loaded)
    return found


@functools.cache
def _disassembler() -> Path:
    files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    return next(Path(file.locate()) for file in files if file.name == "nvdisasm")


def _disassemble(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "unit.cubin"
        file.write_bytes(cubin)
        run = subprocess.run([_disassembler(), "-c", file], check=True, capture_output=True, text=True)
        return run.stdout


def _operations(listing: str) -> list[Operation]:
    found, label = [], ""
    for line in listing.splitlines():
        begins = re.match(r"^\s*(\.L_\w+):", line)
        instruction = re.match(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", line)
        if begins:
            label = begins[1]
        elif instruction:
            found.append(Operation(instruction[1], line.strip(), label))
            label = ""
    return found
