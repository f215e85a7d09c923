"""A kernel parsed from PTX text."""

from __future__ import annotations

import re

from tests.cuda.interpreter.block import Block
from tests.cuda.interpreter.memory import TYPES


class Kernel:
    def __init__(self, ptx, name):
        text = re.sub(r"//[^\n]*", "", ptx)
        self.shared = {}
        offset = 0
        for align, array, size in re.findall(rf"\.shared \.align (\d+) \.b8 ({name}_shared_\d+)\[(\d*)\]", text):
            offset = -(-offset // int(align)) * int(align)
            self.shared[array] = offset
            offset += int(size or 0)
        self.shared_bytes = offset
        head, body = re.search(rf"\.entry\s+{name}\s*\((.*?)\)[^{{]*\{{(.*?)^\}}", text, re.S | re.M).groups()
        self.parameters = re.findall(r"\.param \.(?:align \d+ )?\.?(\w+)[^,]*?([\w$]+)\s*(?:,|$)", head.strip())
        self.registers, self.code, self.labels = {}, [], {}
        for statement in re.split(r";|(?<=:)\s*\n", re.sub(r"\{(?=\s*\.reg)|\}(?=\s*$)", ";", body, flags=re.M)):
            self._parse(statement.strip())

    def _parse(self, statement):
        if statement.startswith("$") and statement.endswith(":"):
            self.labels[statement[:-1]] = len(self.code)
        elif statement.startswith(".reg"):
            kind, names = re.match(r"\.reg \.(\w+)\s+(.*)", statement).groups()
            for name in names.split(","):
                family = re.match(r"\s*(%?\w+?)<(\d+)>", name)
                for one in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name.strip()]:
                    self.registers[one] = TYPES[kind]
        elif statement and not statement.startswith("."):
            guard = re.match(r"@(!?)(%\w+)\s+(.*)", statement, re.S)
            rest = guard[3] if guard else statement
            opcode, _, operands = rest.partition(" ") if " " in rest.split("\t")[0] else rest.partition("\t")
            parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", operands)
            self.code.append(((guard[2], guard[1] == "!") if guard else None, opcode.strip().split("."), parts, rest))

    def run(self, memory, grid, threads, *arguments, shared_bytes=0):
        flags = {"memory": memory, "grid": grid, "block": threads, "arguments": arguments}
        blocks = [Block(self, index, flags, shared_bytes).run() for index in range(grid)]
        while blocks:
            blocks = [one for one in blocks if next(one, "done") != "done"]
