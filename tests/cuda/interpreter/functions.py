"""The Python functions that a kernel's basic blocks are translated to, each compiled when it first runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType

from tests.cuda.interpreter import (
    conversions,
    matrices,
    numbers,
    rules_memory,
    rules_numbers,
    rules_warps,
    spaces,
    warps,
)
from tests.cuda.interpreter.emitter import Emitter
from tests.cuda.interpreter.flow import BasicBlock
from tests.cuda.interpreter.program import Program

RULE_FILES = (rules_memory, rules_numbers, rules_warps)
"""Importing them registers how instructions are written in Python."""
FILE = "<basic block>"
"""Name of the file in tracebacks."""
_NAMES = {
    key: value for library in (numbers, conversions, warps, matrices, spaces) for key, value in vars(library).items()
}


class Functions:
    """The functions of a kernel.

    Attributes:
        kept: Registers that live from one basic block to the next; the functions find them by their place here.
        texts: Python text of each basic block.
    """

    def __init__(self, program: Program, blocks: list[BasicBlock]) -> None:
        self.kept = sorted(set().union(*(block.live_in for block in blocks)))
        places = {name: place for place, name in enumerate(self.kept)}
        self.texts: list[str] = []
        self._ptx_lines: list[list[int]] = []
        self._space = dict(_NAMES)
        for block in blocks:
            emitter = Emitter(program)
            _emit(emitter, block, places)
            self.texts.append("\n".join(emitter.lines))
            self._ptx_lines.append(emitter.ptx_lines)
            self._space.update(emitter.constants)
        self._functions: list[Callable | None] = [None] * len(blocks)

    def __getitem__(self, number: int) -> Callable:
        """Return the function of a basic block."""
        function = self._functions[number]
        if function is None:
            space: dict[str, Callable] = {}
            exec(_compiled(self.texts[number]), self._space, space)
            function = self._functions[number] = space["block"]
        return function

    def ptx_line(self, number: int, error: BaseException) -> int:
        """Return the line of the PTX where basic block `number` raised an error, or 0."""
        line, place = 0, error.__traceback__
        while place is not None:
            if place.tb_frame.f_code.co_filename == FILE:
                line = self._ptx_lines[number][place.tb_lineno - 1]
            place = place.tb_next
        return line


@functools.lru_cache(maxsize=2048)
def _compiled(text: str) -> CodeType:
    """Return compiled text; kernels that differ in one instruction share the other blocks."""
    return compile(text, FILE, "exec")


def _emit(emitter: Emitter, block: BasicBlock, places: dict[str, int]) -> None:
    """Write the function of a basic block."""
    emitter.write("def block(x, w, R):", 0)
    for name in sorted(block.reads):
        # A slice would show what the block stores below.
        copied = ".copy()" if name in block.writes & block.live_out else ""
        emitter.write(f"{emitter.local(name)} = R[{places[name]}][w]{copied}")
    for instruction in block.code:
        emitter.instruction(instruction)
    for name in sorted(block.writes & block.live_out):
        emitter.write(f"R[{places[name]}][w] = {emitter.local(name)}")
    last = block.last
    if block.end == "branch":
        # A guard on another instruction skips it where it is false.
        negated = last.negated if last.name == "bra" else not last.negated
        emitter.write(f"return {'~' if negated else ''}{emitter.local(last.guard)}")
    elif block.end == "barrier":
        if set(last.options) - {"sync", "aligned", "cta"}:
            raise NotImplementedError(f"line {last.line}: {last.text}")
        number, count = (*(emitter.get(each, "u32") for each in last.operands), "None")[:2]
        emitter.write(f"return {number}, {count}")
    else:
        emitter.write("return None")
