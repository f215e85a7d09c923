"""A block of threads: who runs next, registers and operands."""

from __future__ import annotations

import re

import numpy as np

from tests.cuda.interpreter.execute import execute
from tests.cuda.interpreter.memory import RAW, TYPES, Memory


class Block:
    def __init__(self, kernel, index, flags, dynamic_shared):
        self.k, self.n, self.index, self.flags = kernel, flags["block"], index, flags
        self.r = {name: np.zeros(self.n, kind) for name, kind in kernel.registers.items()}
        self.shared = Memory()
        self.shared.starts, self.shared.arrays = [0], [np.zeros(kernel.shared_bytes + dynamic_shared, np.uint8)]
        self.params = {
            name: (kind, value) for (kind, name), value in zip(kernel.parameters, flags["arguments"], strict=True)
        }
        self.steps = 0

    def run(self):
        pc, done = np.zeros(self.n, np.int64), np.zeros(self.n, bool)
        waiting = np.zeros(self.n, bool)
        while True:
            live = ~done & ~waiting
            if not live.any():
                if not waiting.any():
                    return
                waiting[:] = False  # all that are left have come to the barrier
                continue
            here = pc[live].min()
            active = live & (pc == here)
            guard, op, parts, text = self.k.code[here]
            pc[active] = here + 1
            self.steps += 1
            if guard:
                active = active & (self.r[guard[0]] ^ guard[1])
            if op[0] == "bra":
                pc[active] = self.k.labels[parts[-1]]
            elif op[0] in ("ret", "exit"):
                done |= active
            elif op[0] in ("bar", "barrier"):
                waiting |= active
            elif active.any():
                try:
                    with np.errstate(all="ignore"):
                        execute(self, op, parts, active)
                except Exception as error:
                    error.add_note(f"PTX: {text}")
                    raise
                if "acquire" in op or "acq_rel" in op:
                    yield "turn"

    def value(self, operand, kind):
        dtype = TYPES.get(kind, kind)
        if operand in self.r:
            stored = self.r[operand]
            if stored.dtype == dtype:
                return stored
            size = np.dtype(dtype).itemsize
            if stored.dtype.itemsize == size:
                return stored.view(dtype)
            return (
                stored.view(RAW[stored.dtype.itemsize]).astype(RAW[size]).view(dtype)
            )  # ld/st/cvt of a wider register
        special = re.match(r"%(n?tid|n?ctaid|laneid)(?:\.(\w))?$", operand)
        if special:
            thread = np.arange(self.n)
            first = special[2] in (None, "x")
            value = {
                "tid": thread if first else 0 * thread,
                "laneid": thread & 31,
                "ntid": self.n if first else 1,
                "ctaid": self.index if first else 0,
                "nctaid": self.flags["grid"] if first else 1,
            }[special[1]]
            return np.broadcast_to(np.asarray(value).astype(dtype), self.n)
        if operand == "%dynamic_smem_size":
            return np.full(self.n, self.shared.arrays[0].size - self.k.shared_bytes, dtype)
        if operand in self.k.shared:
            return np.full(self.n, self.k.shared[operand], dtype)
        if operand.startswith("0f"):
            number = np.array([int(operand[2:], 16)], np.uint32).view(np.float32)
        else:
            number = np.array([int(operand, 0) & (2**64 - 1)], np.uint64)
            number = number.view(np.int64) if dtype is not np.bool_ else number
        return np.broadcast_to(number.astype(dtype), self.n)

    def write(self, name, value, active):
        target = self.r[name]
        value = np.asarray(value)
        if value.dtype != target.dtype:
            size = target.dtype.itemsize
            if value.dtype.itemsize != size:
                signed = np.issubdtype(value.dtype, np.signedinteger)
                value = value.astype({2: np.int16, 4: np.int32, 8: np.int64}[size] if signed else RAW[size])
            value = value.view(target.dtype)
        np.copyto(target, value, where=active)

    def address(self, operand):
        base, _, offset = operand[1:-1].replace(" ", "").partition("+")
        at = self.r[base].astype(np.int64) if base in self.r else self.value(base, "s64")
        return at + int(offset or 0)
