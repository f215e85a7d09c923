"""Python text for the instructions of a basic block: NumPy operations on arrays with one element per thread.

A register is a local variable within a block. Between blocks it lies in `R`, an array over all threads of the wave; `w`
selects the threads that run. Values that are equal in all threads may be NumPy scalars.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tests.cuda.interpreter.program import REGISTER_TYPES, Instruction, Program

VALUE_TYPES = {
    **{
        f"{letter}{bits}": np.dtype(f"{kind}{bits // 8}")
        for letter, kind in ("bu", "uu", "si")
        for bits in (8, 16, 32, 64)
    },
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "f16x2": np.dtype(np.uint32),
    "bf16x2": np.dtype(np.uint32),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "pred": np.dtype(np.bool_),
}
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid|laneid|warpid|nwarpid|dynamic_smem_size|total_smem_size)(?:\.([xyz]))?$")

Rule = Callable[["Emitter", Instruction], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how instructions of these names are written in Python."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


class Emitter:
    """Collects the Python text of one basic block.

    Attributes:
        lines: The text.
        ptx_lines: For each line of the text, the line of the PTX that it comes from.
        constants: Names that the text uses, with their values.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.lines: list[str] = []
        self.ptx_lines: list[int] = []
        self.constants: dict[str, object] = {}
        self._line = 0
        self._temporaries = 0

    def write(self, text: str, indent: int = 1) -> None:
        """Append a line."""
        self.lines.append("    " * indent + text)
        self.ptx_lines.append(self._line)

    def instruction(self, instruction: Instruction) -> None:
        """Append an instruction.

        Raises:
            NotImplementedError: The interpreter does not know it.
        """
        self._line = instruction.line
        known = RULES.get(instruction.name)
        if known is None:
            raise NotImplementedError(f"line {instruction.line}: {instruction.text}")
        try:
            known(self, instruction)
        except (KeyError, ValueError, TypeError) as error:
            raise NotImplementedError(f"line {instruction.line}: {instruction.text}: {error}") from error

    def constant(self, value: np.generic | np.dtype) -> str:
        """Return a name for a number or a type of NumPy; it depends on nothing else."""
        if isinstance(value, np.dtype):
            name = f"type_{value.num}"
        else:
            name = f"k{value.dtype.num}_{value.tobytes().hex()}"
        self.constants[name] = value
        return name

    def temporary(self) -> str:
        """Return a new name."""
        self._temporaries += 1
        return f"t{self._temporaries}"

    def dtype(self, kind: str) -> str:
        """Return a name for the NumPy type of a PTX type."""
        return self.constant(VALUE_TYPES[kind])

    def local(self, register: str) -> str:
        """Return the Python variable of a register."""
        return ("v_" if register.startswith("%") else "n_") + register.lstrip("%").replace("$", "_")

    def get(self, operand: str, kind: str) -> str:
        """Return an expression for an operand as a value of PTX type `kind`."""
        wanted = VALUE_TYPES[kind]
        declared = self.program.registers.get(operand)
        if declared is None:
            return self._special(operand, wanted) or self.constant(self.number(operand, wanted))
        stored = np.dtype(REGISTER_TYPES[declared])
        name = self.local(operand)
        if stored == wanted:
            return name
        if stored.itemsize == wanted.itemsize:
            return f"{name}.view({self.constant(wanted)})"
        if stored.kind != "u" or wanted.itemsize > stored.itemsize:
            raise ValueError(f"{operand} ({declared}) as {kind}")
        narrow = np.dtype(f"u{wanted.itemsize}")
        text = f"{name}.astype({self.constant(narrow)})"
        return text if narrow == wanted else f"{text}.view({self.constant(wanted)})"

    def put(self, target: str, text: str, kind: str, guard: str = "") -> None:
        """Append the assignment of a value of PTX type `kind` to a register; where `guard` is false it stays."""
        if target == "_":
            return
        stored = np.dtype(REGISTER_TYPES[self.program.registers[target]])
        given = VALUE_TYPES[kind]
        if given != stored and given.itemsize == stored.itemsize:
            text = f"({text}).view({self.constant(stored)})"
        elif given != stored:
            if given.kind not in "iu" or given.itemsize > stored.itemsize:
                raise ValueError(f"{kind} into {target}")
            wide = np.dtype(f"{given.kind}{stored.itemsize}")
            text = f"({text}).astype({self.constant(wide)})"
            text += "" if wide == stored else f".view({self.constant(stored)})"
        name = self.local(target)
        self.write(f"{name} = where({guard}, {text}, {name})" if guard else f"{name} = {text}")

    def result(self, instruction: Instruction, text: str, kind: str | None = None) -> None:
        """Append the assignment of an instruction's result to its first operand."""
        self.put(instruction.operands[0], text, kind or instruction.kind, self.guard(instruction))

    def guard(self, instruction: Instruction) -> str:
        """Return an expression that tells where a guarded instruction runs, or an empty string."""
        if not instruction.guard:
            return ""
        return ("~" if instruction.negated else "") + self.local(instruction.guard)

    def address(self, operand: str) -> str:
        """Return an expression for `[base+offset]`: an array of 32 or 64 bits, or an integer."""
        base, _, offset = operand[1:-1].replace(" ", "").partition("+")
        shift = int(offset or 0)
        declared = self.program.registers.get(base)
        if declared is None:
            return str(self.symbol(base) + shift) if base[0] not in "0123456789" else str(int(base, 0) + shift)
        name = self.local(base)
        kind = np.uint32 if declared.endswith("32") else np.uint64
        return (
            f"({name} + {self.constant(kind(shift % 2**32 if kind is np.uint32 else shift % 2**64))})"
            if shift
            else name
        )

    def symbol(self, name: str) -> int:
        """Return the offset of an array in its memory."""
        for places in (self.program.shared, self.program.local):
            if name in places:
                return places[name]
        raise ValueError(f"unknown symbol {name}")

    def number(self, text: str, wanted: np.dtype) -> np.generic:
        """Return a literal, or the offset of an array, as a NumPy scalar."""
        if text[:2] in ("0f", "0F"):
            return np.uint32(int(text[2:], 16)).view(np.float32).astype(wanted)
        if text[:2] in ("0d", "0D"):
            return np.uint64(int(text[2:], 16)).view(np.float64).astype(wanted)
        value = self.symbol(text) if re.match(r"[A-Za-z_$]", text) else int(text.rstrip("U"), 0)
        if wanted.kind in "iu":
            return np.array(value % 2 ** (8 * wanted.itemsize), f"u{wanted.itemsize}").view(wanted)[()]
        return wanted.type(value)

    def _special(self, operand: str, wanted: np.dtype) -> str:
        if operand in self.program.constants:
            return f"x.constants[{operand!r}].astype({self.constant(wanted)})"
        found = SPECIAL.match(operand)
        if not found:
            return ""
        name = found[1] + (f"_{found[2]}" if found[2] else "")
        text = f"x.{name}[w]" if found[1] in ("tid", "ctaid", "laneid", "warpid") else f"x.{name}"
        return f"{text}.astype({self.constant(wanted)})"


def braced(operand: str) -> list[str]:
    """Return the parts of `{a, b}`, or the operand itself."""
    return [part.strip() for part in operand.strip("{}").split(",")]
