"""Instructions of memory, of pairs of halves and of whole warps."""

from __future__ import annotations

import numpy as np

from tests.cuda.interpreter.memory import TYPES


def halves(block, name, parts, active):
    values = [np.ascontiguousarray(block.value(part, "u32")).view(np.float16) for part in parts[1:]]
    wide = [value.astype(np.float64) for value in values]
    out = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "fma": lambda a, b, c: a * b + c,
    }[name](*wide)
    block.write(parts[0], out.astype(np.float16).view(np.uint32), active)


def memory(block, op, parts, active):
    name, kind = op[0], op[-1]
    store = block.shared if "shared" in op else block.flags["memory"]
    where = np.flatnonzero(active)
    if name == "ld":
        names = parts[0].strip("{}").split(",")
        at = block.address(parts[1])[where]
        if (at % (len(names) * np.dtype(TYPES[kind]).itemsize)).any():
            raise IndexError("misaligned vector load")
        for i, one in enumerate(names):
            out = np.zeros(block.n, TYPES[kind])
            out[where] = store.load(at + i * out.itemsize, TYPES[kind])
            block.write(one.strip(), out, active)
    elif name == "st":
        for i, one in enumerate(parts[1].strip("{}").split(",")):
            values = block.value(one.strip(), kind)[where]
            store.store(block.address(parts[0])[where] + i * values.itemsize, values)
    elif name in ("red", "atom"):
        address, operand = (parts[0], parts[1]) if name == "red" else (parts[1], parts[2])
        old, values = np.zeros(block.n, TYPES[kind]), block.value(operand, kind)
        for thread in where:  # one after the other, as atomics are
            at = block.address(address)[thread : thread + 1]
            old[thread] = store.load(at, TYPES[kind])[0]
            store.store(at, np.array([old[thread] + values[thread]], TYPES[kind]))
        if name == "atom":
            block.write(parts[0], old, active)
    elif name == "cp":
        if op[1:3] == ["async", "cg"]:
            for byte in range(0, 16, 4):
                data = block.flags["memory"].load(block.address(parts[1])[where] + byte, np.uint32)
                block.shared.store(block.address(parts[0])[where] + byte, data)
    elif name == "ldmatrix":
        names, at = [one.strip() for one in parts[0].strip("{}").split(",")], block.address(parts[1])
        for warp in range(0, block.n, 32):
            for i, one in enumerate(names):
                rows = np.repeat(at[warp + 8 * i : warp + 8 * i + 8], 4) + np.tile(np.arange(4) * 4, 8)
                block.r[one][warp : warp + 32] = block.shared.load(rows, np.uint32)
    else:
        mma(block, op, parts, active)


def mma(block, op, parts, active):
    """mma.sync m16n8k32 (8 bits) and m16n8k16 (f16, bf16): fragments as the PTX manual lays them out."""
    names = [[one.strip() for one in part.strip("{}").split(",")] for part in parts]
    a_type, b_type = op[-3], op[-2]
    width = 4 if a_type in ("s8", "u8") else 2  # elements in a register

    def elements(registers, kind, warp):
        words = np.stack([block.r[one][warp : warp + 32].view(np.uint32) for one in registers], 1)
        if kind == "bf16":
            halves = np.ascontiguousarray(words).view(np.uint16).astype(np.uint32) << np.uint32(16)
            return halves.view(np.float32).reshape(32, len(registers), width)
        kind = {"s8": np.int8, "u8": np.uint8, "f16": np.float16}[kind]
        return np.ascontiguousarray(words).view(kind).reshape(32, len(registers), width)

    result = np.int32 if op[-1] == "s32" else np.float32
    group, inside = np.arange(32) // 4, np.arange(32) % 4
    for warp in range(0, block.n, 32):
        if not active[warp]:
            continue
        if not active[warp : warp + 32].all():
            raise RuntimeError("mma by part of a warp")
        wide = np.int64 if result is np.int32 else np.float64
        a, b, c = np.zeros((16, 8 * width), wide), np.zeros((8 * width, 8), wide), np.zeros((16, 8), wide)
        ea, eb = elements(names[1], a_type, warp), elements(names[2], b_type, warp)
        for i in range(4):
            for j in range(width):
                a[group + 8 * (i & 1), width * inside + j + 4 * width * (i >> 1)] = ea[:, i, j]
        for i in range(2):
            for j in range(width):
                b[width * inside + j + 4 * width * i, group] = eb[:, i, j]
        for i, one in enumerate(names[3]):
            c[group + 8 * (i >> 1), 2 * inside + (i & 1)] = block.r[one][warp : warp + 32].view(result)
        out = (a @ b + c).astype(result)
        for i, one in enumerate(names[0]):
            block.r[one][warp : warp + 32] = out[group + 8 * (i >> 1), 2 * inside + (i & 1)].view(block.r[one].dtype)
