"""A kernel, decoded once from PTX text into Python functions, and its launches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tests.cuda.interpreter.flow import BasicBlock, basic_blocks
from tests.cuda.interpreter.functions import Functions
from tests.cuda.interpreter.global_races import GlobalRaces
from tests.cuda.interpreter.program import REGISTER_TYPES, Program, parse
from tests.cuda.interpreter.wave import Wave

_PARAMETERS = {"u64": np.uint64, "s64": np.int64, "b64": np.uint64, "u32": np.uint32, "s32": np.int32, "b32": np.uint32}
_PARAMETERS["f32"] = np.float32
_MOST_THREADS = 8192
"""Threads that run at the same time, unless a kernel waits for others: more fill the processor's caches."""


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel.

    Attributes:
        grid: Blocks in x, y and z.
        threads: Threads of a block in x, y and z.
        parameters: Value of each parameter.
        constants: Address of each constant array.
        shared_bytes: Dynamic shared memory.
        cohorts: Number of cohorts of warps that run in random order.
        races: Whether races in shared memory are looked for.
        global_races: Looks for races in global memory; None if they are not looked for.
    """

    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    parameters: dict[str, np.generic]
    constants: dict[str, np.generic]
    shared_bytes: int
    cohorts: int
    races: bool
    global_races: GlobalRaces | None


class Kernel:
    """A kernel of a PTX file.

    Attributes:
        program: What was parsed.
        blocks: Its basic blocks.
        functions: The Python function of each basic block.
        granule: Bytes that its accesses to shared memory are multiples of.
        most_steps: Basic blocks after which a wave is taken for one that does not end.
        steps: Most basic blocks that a wave has run.
    """

    def __init__(self, ptx_text: str, name: str, most_steps: int = 1_000_000) -> None:
        self.most_steps, self.steps = most_steps, 0
        self.program: Program = parse(ptx_text, name)
        self.blocks: list[BasicBlock] = basic_blocks(self.program)
        self.granule = _granule(self.program)
        self.functions = Functions(self.program, self.blocks)
        self._ptx = ptx_text.split("\n")

    def poisoned_registers(self, count: int, random: np.random.Generator) -> list[np.ndarray]:
        """Return the registers that live between basic blocks, with values that mean nothing."""
        registers = []
        for name in self.functions.kept:
            dtype = np.dtype(REGISTER_TYPES[self.program.registers[name]])
            if dtype == np.bool_:
                registers.append(random.integers(0, 2, count).astype(bool))
            else:
                registers.append(np.full(count * dtype.itemsize, 0xFD, np.uint8).view(dtype))
        return registers

    def run(
        self,
        memory,
        grid: int | tuple[int, ...],
        threads: int | tuple[int, ...],
        *arguments: int | float,
        shared_bytes: int = 0,
        seed: int = 0,
        cohorts: int = 2,
        races: bool = True,
        together: int = 0,
    ) -> None:
        """Run the kernel.

        Args:
            memory: The global memory.
            grid: Blocks, in up to three dimensions.
            threads: Threads of a block, a multiple of 32.
            *arguments: Addresses and numbers.
            shared_bytes: Dynamic shared memory.
            seed: Of the order of blocks, cohorts and atomics.
            cohorts: Groups of warps that run one after the other, in random order; 1 = all warps together.
            races: Whether to look for races.
            together: Blocks that run at the same time (0 = as many as are fast); a barrier of the grid needs all.

        Raises:
            IndexError: An access outside of memory, or one that is not aligned.
            RaceError: Accesses that no barrier orders.
            RuntimeError: Threads wait for ever, or a lane is missing.
        """
        sizes, block = _three(grid), _three(threads)
        count, per_block = math.prod(sizes), math.prod(block)
        if len(arguments) != len(self.program.parameters):
            raise TypeError(f"{self.program.name} has {len(self.program.parameters)} parameters, not {len(arguments)}")
        if per_block % 32 or not 0 < per_block <= 1024:
            raise ValueError(f"{per_block} threads per block")
        parameters = {
            name: _PARAMETERS[kind](value)
            for (kind, name), value in zip(self.program.parameters, arguments, strict=True)
        }
        constants = {
            name: np.uint64(memory.place(np.frombuffer(content, np.uint8)))
            for name, content in self.program.constants.items()
        }
        global_races = GlobalRaces(count, per_block) if races else None
        launch = Launch(sizes, block, parameters, constants, shared_bytes, cohorts, races, global_races)
        random = np.random.default_rng(seed)
        together = together or max(1, _MOST_THREADS // per_block)
        order = random.permutation(count) if count > 1 else np.zeros(1, np.int64)
        with np.errstate(all="ignore"):
            for first in range(0, count, together):
                self._run_wave(memory, np.sort(order[first : first + together]), launch, random)

    def _run_wave(self, memory, blocks, launch, random) -> None:
        wave = Wave(self, memory, blocks, launch, random)
        try:
            wave.run()
        except Exception as error:
            line = self.functions.ptx_line(wave.current, error)
            if line:
                error.add_note(f"{self.program.name}, PTX line {line}: {self._ptx[line - 1].strip()}")
            raise


def _three(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int | np.integer) else tuple(size)
    return (*(int(one) for one in sizes), 1, 1)[:3]


def _granule(program: Program) -> int:
    """Return the smallest access to shared memory, at most 4 bytes."""
    smallest = 4
    for item in program.code:
        if (
            not isinstance(item, str)
            and item.name in ("ld", "st")
            and not {"global", "param", "local"} & {*item.options}
        ):
            bits = "".join(letter for letter in item.kind if letter.isdigit())
            smallest = min(smallest, int(bits) // 8)
    return smallest
