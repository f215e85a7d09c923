"""Basic blocks of a kernel, and which registers live from one to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.cuda.interpreter.program import CONTROL, Instruction, Program, registers_in

WITHOUT_RESULT = {
    *("st", "red", "bar", "barrier", "bra", "ret", "exit", "trap", "membar", "fence", "prefetch", "prefetchu", "cp"),
    *("griddepcontrol", "nanosleep", "discard", "applypriority"),
}
WARP_WIDE = {"bar", "shfl", "vote", "mma", "ldmatrix", "match", "redux", "activemask", "elect"}


@dataclass
class BasicBlock:
    """Instructions that run one after the other.

    Attributes:
        code: The instructions without the one that ends the block.
        end: "next", "jump", "branch", "barrier" or "exit".
        last: The instruction that ends the block; None for "next".
        target: Block that a jump or a taken branch leads to.
        whole_warps: Whether the block has instructions that the lanes of a warp execute together.
        yields: Whether other threads must run before the block is run again: it reads what they write.
        live_in: Registers that are read before they are written, here or later.
        live_out: Registers that are read later.
        reads: Registers that the block reads before it writes them.
        writes: Registers that the block writes.
    """

    code: list[Instruction] = field(default_factory=list)
    end: str = "next"
    last: Instruction | None = None
    target: int = -1
    whole_warps: bool = False
    yields: bool = False
    live_in: set[str] = field(default_factory=set)
    live_out: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)


def results_of(instruction: Instruction, registers: dict[str, str]) -> list[str]:
    """Return the registers that an instruction writes."""
    if instruction.name in WITHOUT_RESULT or not instruction.operands:
        return []
    return [name for name in registers_in(instruction.operands[0]) if name in registers]


def arguments_of(instruction: Instruction, registers: dict[str, str]) -> list[str]:
    """Return the registers that an instruction reads; a guarded one may keep its result."""
    operands = instruction.operands if instruction.name in WITHOUT_RESULT else instruction.operands[1:]
    found = [name for operand in operands for name in registers_in(operand) if name in registers]
    if instruction.guard:
        found += [instruction.guard, *results_of(instruction, registers)]
    return found


def basic_blocks(program: Program) -> list[BasicBlock]:
    """Return the basic blocks of a kernel, in the order of the text, with live registers."""
    blocks, where = _split(program)
    for index, block in enumerate(blocks):
        if block.end in ("jump", "branch"):
            label = block.last.operands[-1]
            if label not in where:
                raise ValueError(f"line {block.last.line}: there is no label {label}")
            block.target = where[label]
        elif block.end == "skip":
            block.end, block.target = "branch", index + 2
        _note_registers(block, program.registers)
    _propagate(blocks)
    return blocks


def _split(program: Program) -> tuple[list[BasicBlock], dict[str, int]]:
    """Return the blocks, and the block where each label stands."""
    blocks, where = [BasicBlock()], {}
    for item in program.code:
        if isinstance(item, str):
            if blocks[-1].code:
                blocks.append(BasicBlock())
            where[item] = len(blocks) - 1
        elif item.name in CONTROL and "warp" not in item.options:
            if item.guard and item.name != "bra":  # A branch around it.
                blocks[-1].end, blocks[-1].last = "skip", item
                blocks.append(BasicBlock())
            blocks[-1].last = item
            blocks[-1].end = _end_of(item)
            blocks.append(BasicBlock())
        else:
            blocks[-1].code.append(item)
            blocks[-1].whole_warps |= item.name in WARP_WIDE
            blocks[-1].yields |= item.name == "atom" or bool({"acquire", "volatile", "relaxed"} & {*item.options})
    if blocks[-1].end == "next":
        blocks[-1].end = "exit"
    for block in blocks:
        block.whole_warps |= block.end == "barrier"
    return blocks, where


def _end_of(instruction: Instruction) -> str:
    if instruction.name == "bra":
        return "branch" if instruction.guard else "jump"
    return "barrier" if instruction.name in ("bar", "barrier") else "exit"


def _note_registers(block: BasicBlock, registers: dict[str, str]) -> None:
    for instruction in block.code:
        block.reads |= {*arguments_of(instruction, registers)} - block.writes
        block.writes |= {*results_of(instruction, registers)}
    if block.last:
        used = [name for operand in block.last.operands for name in registers_in(operand) if name in registers]
        guard = [block.last.guard] if block.end == "branch" else []
        block.reads |= {*used, *guard} - block.writes


def successors(blocks: list[BasicBlock], index: int) -> list[int]:
    """Return the blocks that may follow block `index`."""
    block = blocks[index]
    if block.end == "exit":
        return []
    following = [] if block.end == "jump" else [index + 1]
    return following + ([block.target] if block.end in ("jump", "branch") else [])


def _propagate(blocks: list[BasicBlock]) -> None:
    """Set the live registers: those that a block or one of its successors reads first."""
    changed = True
    while changed:
        changed = False
        for index in range(len(blocks) - 1, -1, -1):
            block = blocks[index]
            out = set().union(*(blocks[after].live_in for after in successors(blocks, index)))
            inside = block.reads | (out - block.writes)
            changed |= out != block.live_out or inside != block.live_in
            block.live_out, block.live_in = out, inside
