"""Read LLVM's assembly (x86 in AT&T syntax, and AArch64) far enough to judge a hot loop.

A function is split into basic blocks at its labels and jumps, and loops are the natural loops of the resulting graph.
An instruction touches the stack if an operand is addressed by the stack pointer, or by the frame pointer in functions
that set one up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_LABEL = re.compile(r"^([.\w$]+):")
_BLOCK_LABEL = re.compile(r"^\.?LBB\d+_\d+$")
_PREFIXES = {"{vex}", "{evex}", "lock", "rep", "notrack"}
_X86_JUMP = re.compile(r"^(j\w+|loop\w*)$")
_ARM_JUMP = re.compile(r"^(b|b\.\w+|cbn?z|tbn?z)$")
_ENDS = {"ret", "retq", "jmp", "jmpq", "b", "br", "ud2", "brk"}
_STACK = re.compile(r"\(%rsp\b|\[sp\b")
_FRAME = re.compile(r"\(%rbp\b|\[x29\b")
_FRAME_SET_UP = re.compile(r"^(movq\s+%rsp, %rbp|(mov|add)\s+x29, sp\b.*)$")
_VECTOR = re.compile(r"%[xyz]mm\d+|\b[qv]\d+\b")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: its name without prefixes, and its operands as text."""

    name: str
    operands: str

    def __str__(self) -> str:
        return f"{self.name} {self.operands}"

    @property
    def target(self) -> str | None:
        """The label that it may jump to; None if it does not jump, or jumps indirectly."""
        if not (_X86_JUMP.match(self.name) or _ARM_JUMP.match(self.name)):
            return None
        label = self.operands.split(",")[-1].strip()
        return label if _BLOCK_LABEL.match(label) else None

    @property
    def has_vector(self) -> bool:
        """Whether an operand is a vector register."""
        return bool(_VECTOR.search(self.operands))


@dataclass
class Block:
    """Instructions that run one after another; `successors` are positions of blocks in the function."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    successors: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Loop:
    """A natural loop: its `header` and all `blocks`, by position in the function."""

    function: Function
    header: int
    blocks: frozenset[int]

    @cached_property
    def instructions(self) -> list[Instruction]:
        return [each for block in sorted(self.blocks) for each in self.function.blocks[block].instructions]

    def count(self, pattern: str) -> int:
        """Return how many instructions match `pattern`, a regular expression for name and operands, at their start."""
        return sum(bool(re.match(pattern, str(each))) for each in self.instructions)

    def spills(self) -> list[str]:
        """Return the instructions that move a vector register to or from the stack, or take an operand from it."""
        return [str(each) for each in self.instructions if each.has_vector and self.function.on_stack(each)]


@dataclass
class Function:
    """Basic blocks of a function, in the order of the text."""

    name: str
    blocks: list[Block]

    @cached_property
    def _has_frame_pointer(self) -> bool:
        return any(_FRAME_SET_UP.match(str(each)) for block in self.blocks for each in block.instructions)

    def on_stack(self, instruction: Instruction) -> bool:
        """Return whether an instruction addresses memory of the stack."""
        if _STACK.search(instruction.operands):
            return True
        return self._has_frame_pointer and bool(_FRAME.search(instruction.operands))

    def _predecessors(self) -> list[set[int]]:
        result: list[set[int]] = [set() for _ in self.blocks]
        for number, block in enumerate(self.blocks):
            for successor in block.successors:
                result[successor].add(number)
        return result

    def _dominators(self, predecessors: list[set[int]]) -> list[set[int]]:
        """Return, for each block, the blocks that every path to it passes.

        A block without predecessors (the target of an indirect jump) counts as an entry.
        """
        everything = set(range(len(self.blocks)))
        result = [{n} if n == 0 or not predecessors[n] else set(everything) for n in range(len(self.blocks))]
        changed = True
        while changed:
            changed = False
            for number, before in enumerate(predecessors):
                if number == 0 or not before:
                    continue
                found = {number} | set.intersection(*(result[each] for each in before))
                changed, result[number] = changed or found != result[number], found
        return result

    def loops(self) -> list[Loop]:
        """Return all natural loops; loops with the same header are one loop."""
        predecessors = self._predecessors()
        dominators = self._dominators(predecessors)
        bodies: dict[int, set[int]] = {}
        for number, block in enumerate(self.blocks):
            for header in block.successors & dominators[number]:
                body, waiting = bodies.setdefault(header, {header}), [number]
                while waiting:
                    here = waiting.pop()
                    if here not in body:
                        body.add(here)
                        waiting.extend(predecessors[here])
        return [Loop(self, header, frozenset(body)) for header, body in sorted(bodies.items())]

    def innermost_loops(self) -> list[Loop]:
        """Return the loops that contain no other loop."""
        loops = self.loops()
        return [loop for loop in loops if not any(other.blocks < loop.blocks for other in loops)]


def _instruction(line: str) -> Instruction | None:
    words = line.split(None, 1)
    while words and words[0] in _PREFIXES:
        words = words[1].split(None, 1) if len(words) > 1 else []
    if not words or words[0].startswith((".", "#", "//")):
        return None
    operands = re.split(r"\s+(?:# |//)", words[1] if len(words) > 1 else "")[0]
    return Instruction(words[0], operands.strip())


def _blocks(lines: list[str]) -> list[Block]:
    blocks, closed = [Block()], False
    for line in lines:
        label = _LABEL.match(line.strip())
        if label is not None:
            if blocks[-1].instructions:
                blocks.append(Block())
            blocks[-1].labels.append(label[1])
            closed = False
            continue
        instruction = _instruction(line)
        if instruction is None:
            continue
        if closed:
            blocks.append(Block())
        blocks[-1].instructions.append(instruction)
        closed = instruction.target is not None or instruction.name in _ENDS
    _connect(blocks)
    return blocks


def _connect(blocks: list[Block]) -> None:
    places = {label: number for number, block in enumerate(blocks) for label in block.labels}
    for number, block in enumerate(blocks):
        for instruction in block.instructions:
            if instruction.target in places:
                block.successors.add(places[instruction.target])
        ends = block.instructions and block.instructions[-1].name in _ENDS
        if not ends and number + 1 < len(blocks):
            block.successors.add(number + 1)


def functions(text: str) -> Iterator[Function]:
    """Return the functions of an assembly listing."""
    name, lines = "", list[str]()
    for line in text.splitlines():
        start = re.match(r"^\s+\.type\s+\"?([^\",]+)\"?,\s*[@%]function", line)
        if start is not None:
            name, lines = start[1], []
        elif name and re.match(r"^\s+\.size\s", line):
            yield Function(name, _blocks(lines))
            name = ""
        elif name:
            lines.append(line)
