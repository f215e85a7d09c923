"""Instructions of single threads."""

from __future__ import annotations

import numpy as np

from tests.cuda.interpreter.memory import TYPES
from tests.cuda.interpreter.memory_instructions import halves, memory


def execute(block, op, parts, active):
    name, kind = op[0], op[-1]
    if kind == "f16x2":
        halves(block, name, parts, active)
        return
    if name == "mov" and parts[1].startswith("{"):  # two 16-bit registers into one
        low, high = (block.value(one.strip(), "u16").astype(np.uint32) for one in parts[1].strip("{}").split(","))
        block.write(parts[0], low | (high << np.uint32(16)), active)
        return
    v = block.value

    def w(value, target=parts[0] if parts else None):
        block.write(target, value, active)

    if name in ("add", "sub", "and", "or", "xor", "min", "max"):
        a, b = v(parts[1], kind), v(parts[2], kind)
        w(
            {
                "add": np.add,
                "sub": np.subtract,
                "and": np.bitwise_and,
                "or": np.bitwise_or,
                "xor": np.bitwise_xor,
                "min": np.minimum,
                "max": np.maximum,
            }[name](a, b)
        )
    elif name in ("mul", "mad") and "wide" in op:
        wide = np.int64 if kind[0] == "s" else np.uint64
        product = v(parts[1], kind).astype(wide) * v(parts[2], kind).astype(wide)
        w(product + v(parts[3], wide) if name == "mad" else product)
    elif name == "mul" and "hi" in op:
        wide = np.int64 if kind[0] == "s" else np.uint64
        w(((v(parts[1], kind).astype(wide) * v(parts[2], kind).astype(wide)) >> wide(32)).astype(TYPES[kind]))
    elif name == "mul":
        w(v(parts[1], kind) * v(parts[2], kind))
    elif name == "mad":
        w(v(parts[1], kind) * v(parts[2], kind) + v(parts[3], kind))
    elif name == "fma":
        a, b, c = (v(part, kind).astype(np.float64) for part in parts[1:])
        w((a * b + c).astype(TYPES[kind]))
    elif name in ("div", "rem") and kind[0] != "f":
        a, b = v(parts[1], kind), v(parts[2], kind)
        quotient = np.where(b == 0, 0, np.trunc(a / np.where(b == 0, 1, b))).astype(TYPES[kind])
        w(quotient if name == "div" else a - quotient * b)
    elif name == "div":
        w(v(parts[1], kind) / v(parts[2], kind))
    elif name in ("neg", "not", "abs"):
        w({"neg": np.negative, "not": np.invert, "abs": np.abs}[name](v(parts[1], kind)))
    elif name in ("rcp", "sqrt", "rsqrt", "ex2", "lg2"):
        f = {"rcp": lambda x: 1 / x, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "ex2": np.exp2, "lg2": np.log2}
        w(f[name](v(parts[1], kind)).astype(TYPES[kind]))
    elif name in ("shl", "shr"):
        shift = np.minimum(v(parts[2], "u32"), 63).astype(TYPES[kind])
        value = v(parts[1], kind)
        over = v(parts[2], "u32") >= 8 * value.dtype.itemsize
        out = np.left_shift(value, shift) if name == "shl" else np.right_shift(value, shift)
        w(np.where(over, np.where((value < 0) & (name == "shr"), -1, 0), out).astype(TYPES[kind]))
    elif name == "mov" or name == "cvta":
        w(
            v(
                parts[1],
                block.r[parts[0]].dtype.type
                if name == "mov" and parts[1] not in block.r
                else block.r[parts[1]].dtype.type,
            )
        )
    elif name == "cvt":
        source = v(parts[1], op[-1])
        if op[-2][0] in "us" and op[-1][0] == "f":
            source = np.rint(source) if "rni" in op else np.trunc(source)
        w(source.astype(TYPES[op[-2]]))
    elif name == "setp":
        a, b = v(parts[1], kind), v(parts[2], kind)
        compare = op[1].rstrip("u") if op[1] not in ("lu",) else "lt"
        table = {
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "lo": np.less,
            "ls": np.less_equal,
            "hi": np.greater,
            "hs": np.greater_equal,
        }
        w(table[compare](a, b))
    elif name == "selp":
        w(np.where(block.r[parts[3]], v(parts[1], kind), v(parts[2], kind)))
    elif name == "prmt":
        both = np.stack([v(parts[1], "u32"), v(parts[2], "u32")], 1).copy().view(np.uint8)
        selector = v(parts[3], "u32")
        out = np.empty((block.n, 4), np.uint8)
        for i in range(4):
            nibble = (selector >> (4 * i)) & 15
            byte = both[np.arange(block.n), nibble & 7]
            out[:, i] = np.where(nibble < 8, byte, 255 * (byte >> 7))
        w(out.view(np.uint32)[:, 0])
    elif name == "lop3":
        a, b, c = (v(part, "u32") for part in parts[1:4])
        table, out = int(parts[4], 0), np.zeros(block.n, np.uint32)
        for i in range(8):
            if table >> i & 1:
                out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        w(out)
    elif name == "dp4a":
        a, b = (
            np.ascontiguousarray(v(part, "u32")).view(np.int8 if t[0] == "s" else np.uint8).reshape(-1, 4)
            for part, t in ((parts[1], op[1]), (parts[2], op[2]))
        )
        w((a.astype(np.int32) * b.astype(np.int32)).sum(1, dtype=np.int32) + v(parts[3], "s32"))
    elif name == "shfl":
        target = parts[0].split("|")[0]
        lane, other = np.arange(block.n), v(parts[2], "u32").astype(np.int64)
        source = {"bfly": lane ^ other, "down": lane + other, "up": lane - other, "idx": (lane & ~31) + (other & 31)}[
            op[2]
        ]
        source = np.where((source >> 5 == lane >> 5) & (source >= 0), source, lane)
        if not active[source[active]].all():
            raise RuntimeError("shuffle from a lane that is not there")
        w(v(parts[1], "u32")[source], target)
    elif name == "ld" and op[1] == "param":
        kind_, value = block.params[parts[1][1:-1].split("+")[0]]
        w(np.full(block.n, value, TYPES[kind_]))
    elif name in ("ld", "st", "red", "atom", "cp", "ldmatrix", "mma"):
        memory(block, op, parts, active)
    elif name in ("membar", "fence", "prefetch", "griddepcontrol", "nanosleep", "discard"):
        pass
    else:
        raise NotImplementedError(".".join(op))
