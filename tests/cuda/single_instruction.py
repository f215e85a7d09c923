"""Run one PTX statement for many inputs, and round numbers exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tests.cuda.handwritten import HEADER
from tests.cuda.interpreter import Kernel, Memory

STORED = {"pred": "u32", "f16": "b16", "bf16": "b16"}
ARRAYS = {"f32": np.float32, "f64": np.float64, "pred": np.uint32}
FLOATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127)}
"""Bits of the significand, smallest and largest exponent of a normal number."""


def dtype_of(kind: str) -> np.dtype:
    """Return the NumPy type of a register's content; halves are 16 bits."""
    if kind in ARRAYS:
        return np.dtype(ARRAYS[kind])
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind.lstrip('bfsu')) // 8}")


def evaluate(
    statement: str, inputs: Sequence[tuple[str, Sequence]], outputs: Sequence[str], **options
) -> list[np.ndarray]:
    """Return what a statement computes.

    Args:
        statement: Reads registers a, b, c, …, and writes r0, r1, …
        inputs: Kind and values of a, b, c, …; all of the same length, one thread each.
        outputs: Kinds of r0, r1, …
        **options: For `Kernel.run`.
    """
    count = len(inputs[0][1])
    padded = -(-count // 32) * 32
    names = [chr(ord("a") + index) for index in range(len(inputs))]
    arrays = [np.zeros(padded, dtype_of(kind)) for kind, _ in inputs]
    for array, (_, values) in zip(arrays, inputs, strict=True):
        array[:count] = values
    results = [np.zeros(padded, dtype_of(kind)) for kind in outputs]
    memory = Memory()
    places = [memory.place(array) for array in [*arrays, *results]]
    text = _text(statement, names, [kind for kind, _ in inputs], outputs)
    Kernel(text, "one").run(memory, 1, padded, *places, **options)
    found = zip(places[len(arrays) :], results, strict=True)
    return [memory.back(place, result.dtype)[:count] for place, result in found]


def _text(statement: str, names: list[str], kinds: list[str], outputs: Sequence[str]) -> str:
    """Return a kernel that loads a value per thread and input, runs the statement, and stores the results."""
    lines, body = [".reg .b32 thread;", ".reg .b64 at, offset;"], ["mov.u32 thread, %tid.x;"]

    def addressed(index: int, kind: str) -> list[str]:
        size = dtype_of(kind).itemsize
        return [
            f"ld.param.u64 at, [one_param_{index}];",
            f"mul.wide.u32 offset, thread, {size};",
            "add.s64 at, at, offset;",
        ]

    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        stored = STORED.get(kind, kind)
        lines.append(f".reg .{'pred' if kind == 'pred' else _register(stored)} {name};")
        body += addressed(index, kind)
        if kind == "pred":
            lines.append(f".reg .b32 {name}_word;")
            body += [f"ld.global.u32 {name}_word, [at];", f"setp.ne.u32 {name}, {name}_word, 0;"]
        else:
            body.append(f"ld.global.{stored} {name}, [at];")
    body.append(statement)
    for index, kind in enumerate(outputs):
        stored = STORED.get(kind, kind)
        lines.append(f".reg .{'pred' if kind == 'pred' else _register(stored)} r{index};")
        body += addressed(len(names) + index, kind)
        if kind == "pred":
            lines.append(f".reg .b32 r{index}_word;")
            body += [f"selp.u32 r{index}_word, 1, 0, r{index};", f"st.global.u32 [at], r{index}_word;"]
        else:
            body.append(f"st.global.{stored} [at], r{index};")
    parameters = ", ".join(f".param .u64 one_param_{index}" for index in range(len(names) + len(outputs)))
    return f"{HEADER}.visible .entry one({parameters})\n{{\n" + "\n".join([*lines, *body, "ret;"]) + "\n}\n"


def _register(kind: str) -> str:
    """Return the type of a register that holds a value: at least 16 bits."""
    return kind if kind in ("f32", "f64") else f"b{max(16, int(kind.lstrip('bfsu')))}"


def nearest(value: Fraction, kind: str) -> float:
    """Return the nearest number of a floating-point type, ties to even, or infinity."""
    if value == 0:
        return 0.0
    bits, smallest, largest = FLOATS[kind]
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent = max(smallest, exponent - (abs(value) < Fraction(2) ** exponent))
    unit = Fraction(2) ** (exponent - bits + 1)
    rounded = round(value / unit) * unit  # Python rounds a fraction's ties to even.
    if abs(rounded) >= Fraction(2) ** (largest + 1):
        return float("inf") if value > 0 else float("-inf")
    return float(rounded)
