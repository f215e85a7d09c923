"""A kernel parsed from PTX text: instructions, registers, parameters, arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

REGISTER_TYPES = {
    **{f"{letter}8": np.uint8 for letter in "bus"},
    **{f"{letter}16": np.uint16 for letter in "busf"},
    **{f"{letter}32": np.uint32 for letter in "bus"},
    **{f"{letter}64": np.uint64 for letter in "bus"},
    "f32": np.float32,
    "f64": np.float64,
    "pred": np.bool_,
}
"""How a register of each type is kept: integers unsigned, halves as 16 bits."""
CONTROL = {"bra", "ret", "exit", "bar", "barrier", "trap"}


@dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
        name: First part of the opcode, such as "ld".
        options: The other parts, such as ("global", "v4", "u32").
        operands: As written; braces and brackets belong to an operand. Scoped registers have unique names.
        guard: Register of the predicate, or an empty string.
        negated: Whether the guard is negated.
        line: Line in the PTX text, from 1.
        text: As written.
    """

    name: str
    options: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str
    negated: bool
    line: int
    text: str

    @property
    def kind(self) -> str:
        """Return the last part of the opcode, which is a type if there is one."""
        return self.options[-1] if self.options else ""


@dataclass
class Program:
    """A kernel.

    Attributes:
        name: The exported name.
        parameters: Type and name of each.
        registers: Type of each register.
        code: Instructions and labels (strings), in order.
        shared: Offset of each shared array; dynamic shared memory begins at `shared_bytes`.
        shared_bytes: Static shared memory.
        local_bytes: Local memory per thread.
        constants: Name -> bytes of arrays in constant or global memory.
    """

    name: str
    parameters: list[tuple[str, str]] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    code: list[Instruction | str] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    constants: dict[str, bytes] = field(default_factory=dict)


def parse(text: str, name: str) -> Program:
    """Return kernel `name` of a PTX file.

    Raises:
        ValueError: There is no such kernel, or a statement is not understood.
    """
    program = Program(name)
    text = re.sub(r"//[^\n]*", "", text)
    found = re.search(rf"\.entry\s+{re.escape(name)}\s*\(([^)]*)\)[^{{]*", text)
    if not found:
        raise ValueError(f"the PTX has no kernel {name}")
    for kind, parameter in re.findall(r"\.param\s+(?:\.align \d+ )?\.(\w+)\s+([\w$]+)", found[1]):
        program.parameters.append((kind, parameter))
    body, first_line = _braced(text, found.end())
    _place_arrays(program, text, body)
    scopes: list[dict[str, str]] = [{}]
    for line, statement in _statements(body, first_line):
        _add(program, statement, line, scopes)
    return program


def _braced(text: str, start: int) -> tuple[str, int]:
    """Return what stands between the brace at `start` and its partner, and the line where it begins."""
    depth = 0
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + 1 : brace.start()], text.count("\n", 0, start) + 1
    raise ValueError("a brace is not closed")


def _place_arrays(program: Program, text: str, body: str) -> None:
    dynamic = []
    for align, array, size in re.findall(r"\.shared \.align (\d+) \.b8 ([\w$]+)\[(\d*)\]", text):
        if not re.search(rf"{re.escape(array)}(?![\w$])", body):
            continue
        if not size:
            dynamic.append(array)
            continue
        program.shared_bytes = -(-program.shared_bytes // int(align)) * int(align)
        program.shared[array] = program.shared_bytes
        program.shared_bytes += int(size)
    if dynamic:
        program.shared_bytes = -(-program.shared_bytes // 16) * 16
    program.shared.update(dict.fromkeys(dynamic, program.shared_bytes))
    for align, array, size in re.findall(r"\.local \.align (\d+) \.b8 ([\w$]+)\[(\d+)\]", body):
        program.local_bytes = -(-program.local_bytes // int(align)) * int(align)
        program.local[array] = program.local_bytes
        program.local_bytes += int(size)
    pattern = r"\.(?:const|global) \.align \d+ \.b(8|16|32|64) ([\w$]+)\[(\d+)\]\s*(?:=\s*\{([^}]*)\})?;"
    for bits, array, size, values in re.findall(pattern, text):
        numbers = [int(value, 0) for value in values.split(",")] if values else []
        content = np.zeros(int(size), f"u{int(bits) // 8}")
        content[: len(numbers)] = numbers
        program.constants[array] = content.tobytes()


def _statements(body: str, line: int) -> list[tuple[int, str]]:
    """Return line and text of each statement; a lone brace opens or closes a scope."""
    found: list[tuple[int, str]] = []
    for number, row in enumerate(body.split("\n"), line):
        rest = row.strip()
        while rest:
            label = re.match(r"(\$[\w$]+):", rest)
            if label:
                found.append((number, label[0]))
                rest = rest[label.end() :].strip()
            elif rest[0] in "{}":
                found.append((number, rest[0]))
                rest = rest[1:].strip()
            else:
                statement, end, rest = rest.partition(";")
                if not end:
                    raise ValueError(f"line {number}: a statement does not end: {statement}")
                found.append((number, statement.strip()))
                rest = rest.strip()
    return found


def _add(program: Program, statement: str, line: int, scopes: list[dict[str, str]]) -> None:
    if statement == "{":
        scopes.append({})
    elif statement == "}":
        scopes.pop()
    elif statement.endswith(":"):
        program.code.append(statement[:-1])
    elif statement.startswith(".reg"):
        _declare(program, statement, line, scopes)
    elif statement.startswith("."):
        if not re.match(r"\.(?:local|pragma|loc|file)\b", statement):
            raise ValueError(f"line {line}: not understood: {statement}")
    else:
        program.code.append(_instruction(statement, line, scopes))


def _declare(program: Program, statement: str, line: int, scopes: list[dict[str, str]]) -> None:
    kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S).groups()
    for name in names.split(","):
        family = re.fullmatch(r"\s*(%?\w+)<(\d+)>", name)
        if family:
            program.registers.update({f"{family[1]}{index}": kind for index in range(int(family[2]))})
        else:
            unique = f"%{name.strip().lstrip('%')}_{line}_{len(program.registers)}" if len(scopes) > 1 else name.strip()
            scopes[-1][name.strip()] = unique
            program.registers[unique] = kind


def _instruction(statement: str, line: int, scopes: list[dict[str, str]]) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", statement, re.S)
    if not found:
        raise ValueError(f"line {line}: not understood: {statement}")
    negated, guard, opcode, rest = found.groups()
    names = {name: unique for scope in scopes for name, unique in scope.items()}
    if names:
        rest = re.sub(r"(?<![\w$.%])%?[A-Za-z_]\w*", lambda word: names.get(word[0], word[0]), rest)
    operands = tuple(part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest))
    name, *options = opcode.replace("::", "_").split(".")
    return Instruction(
        name, tuple(options), operands, names.get(guard or "", guard or ""), bool(negated), line, statement
    )


def registers_in(operand: str) -> list[str]:
    """Return the names in an operand that may be registers."""
    return re.findall(r"%[\w$]+(?:\.\w)?|(?<![\w$.])[A-Za-z_]\w*", operand)
