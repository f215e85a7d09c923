"""Changes to PTX that a test of a kernel must notice: a barrier left out, an index off by one, swapped operands.

`survivors(text, name, check)` changes one instruction at a time and runs `check(kernel)` with the changed kernel; it
returns the changes that raised nothing. Some change nothing that can be seen, such as a hint's address or one of two
barriers in a row: a test names those that it allows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.cuda.interpreter import Kernel
from tests.cuda.interpreter.program import Instruction, parse

KINDS = ("barrier", "offset", "constant", "swap", "comparison")
"""barrier: barriers and waits are left out; offset: [address + n] moves by one element; constant: an immediate operand
grows by one; swap: two operands change places; comparison: < becomes <=, and so on."""
_SILENT = {"prefetch", "prefetchu", "griddepcontrol", "nanosleep"}
_COMPARISONS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "lo": "ls", "ls": "lo", "eq": "ne", "ne": "eq"}
_SLACK = 50


@dataclass(frozen=True)
class Mutation:
    """A changed kernel.

    Attributes:
        kind: One of `KINDS`.
        line: Line of the PTX.
        before: The instruction as it is.
        after: The instruction as it is changed to; empty if it is left out.
        text: The whole PTX.
    """

    kind: str
    line: int
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.kind}: {self.before} -> {self.after or 'left out'}"


def mutations(text: str, name: str, kinds: tuple[str, ...] = KINDS) -> list[Mutation]:
    """Return all changes of kernel `name` in a PTX file."""
    lines = text.split("\n")
    found = []
    for item in parse(text, name).code:
        if isinstance(item, str) or item.name in _SILENT or "prefetch" in item.options:
            continue
        row = lines[item.line - 1]
        if row.count(item.text) != 1:
            continue
        for kind, after in _changes(item):
            if kind in kinds:
                changed = row.replace(item.text + ";", after + ";" if after else "")
                whole = "\n".join([*lines[: item.line - 1], changed, *lines[item.line :]])
                found.append(Mutation(kind, item.line, item.text, after, whole))
    return found


def survivors(
    text: str,
    name: str,
    check: Callable[[Kernel], None],
    *,
    kinds: tuple[str, ...] = KINDS,
    most: int = 0,
    seed: int = 0,
) -> list[Mutation]:
    """Return the changes that `check` does not notice.

    Args:
        text: A PTX file.
        name: The kernel.
        check: Runs the kernel it is given and raises if results are wrong.
        kinds: Which changes are made.
        most: Number of changes that are tried, chosen at random (0 = all).
        seed: Of that choice.

    Raises:
        Exception: Whatever `check` raises for the kernel as it is.
    """
    kernel = Kernel(text, name)
    check(kernel)
    changes = mutations(text, name, kinds)
    if most and most < len(changes):
        changes = random.Random(seed).sample(changes, most)
    return [change for change in changes if not _is_noticed(change, name, check, kernel.steps)]


def _is_noticed(change: Mutation, name: str, check: Callable[[Kernel], None], steps: int) -> bool:
    try:
        check(Kernel(change.text, name, most_steps=_SLACK + 4 * steps))
    except Exception:  # noqa: BLE001  whatever is raised, the change was noticed
        return True
    return False


def _changes(item: Instruction) -> Iterator[tuple[str, str]]:
    """Yield kind and new text of each change of an instruction."""
    if item.name in ("bar", "barrier") or (item.name == "cp" and "wait_group" in item.options):
        yield "barrier", ""
        return
    yield from _moved_offsets(item)
    yield from _changed_constants(item)
    yield from _swapped(item)
    if item.name == "setp":
        old = item.options[0]
        if old in _COMPARISONS:
            yield "comparison", item.text.replace(f"setp.{old}", f"setp.{_COMPARISONS[old]}", 1)


def _moved_offsets(item: Instruction) -> Iterator[tuple[str, str]]:
    if item.name in ("ld", "st", "cp", "ldmatrix", "atom", "red") and "param" not in item.options:
        bits = re.sub(r"\D", "", item.kind)
        size = int(bits) // 8 if bits else 16
        for operand in item.operands:
            if operand.startswith("["):
                base, _, offset = operand[1:-1].partition("+")
                yield "offset", item.text.replace(operand, f"[{base}+{int(offset or 0) + size}]", 1)


def _changed_constants(item: Instruction) -> Iterator[tuple[str, str]]:
    if item.name in ("add", "sub", "mul", "mad", "and", "shl", "shr", "setp", "mov", "shfl", "prmt", "lop3"):
        head, _, last = item.text.rpartition(",")
        number = re.fullmatch(r"\s*(-?\d+)\s*", last)
        if number and item.name != "shfl":
            yield "constant", f"{head}, {int(number[1]) + 1}"


def _swapped(item: Instruction) -> Iterator[tuple[str, str]]:
    operands = [*item.operands]
    pairs = {"sub": (1, 2), "prmt": (1, 2), "selp": (1, 2), "div": (1, 2), "shl": (1, 2)}
    if item.name in pairs:
        a, b = pairs[item.name]
        if operands[a] != operands[b] and (item.name != "shl" or operands[b].startswith("%")):
            yield "swap", _with_operands(item, _exchanged(operands, a, b))
    elif item.name == "dp4a" and item.options[0] != item.options[1]:
        yield "swap", _with_operands(item, _exchanged(operands, 1, 2))
    elif item.name == "mma":
        for place in (1, 2):
            parts = [part.strip() for part in operands[place].strip("{}").split(",")]
            if len(parts) > 1 and parts[0] != parts[1]:
                parts[0], parts[1] = parts[1], parts[0]
                yield (
                    "swap",
                    _with_operands(item, [*operands[:place], "{" + ", ".join(parts) + "}", *operands[place + 1 :]]),
                )


def _exchanged(operands: list[str], a: int, b: int) -> list[str]:
    changed = [*operands]
    changed[a], changed[b] = operands[b], operands[a]
    return changed


def _with_operands(item: Instruction, operands: list[str]) -> str:
    guard = f"@{'!' if item.negated else ''}{item.guard} " if item.guard else ""
    opcode = re.fullmatch(r"(?:@!?[%\w]+\s+)?([\w.:]+)\s.*", item.text, re.S)[1]
    return f"{guard}{opcode} {', '.join(operands)}"
