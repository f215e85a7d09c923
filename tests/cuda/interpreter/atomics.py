"""What atomic operations store."""

from __future__ import annotations

import numpy as np


def apply_atomic(operation: str, old: np.generic, values: list[np.generic]) -> np.generic:
    """Return the new value of a word."""
    first = values[0]
    if operation == "cas":
        return values[1] if old == first else old
    if operation == "inc":
        return old.dtype.type(0) if old >= first else old + old.dtype.type(1)
    if operation == "dec":
        return first if old == 0 or old > first else old - old.dtype.type(1)
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum, "exch": lambda _, new: new}
    functions.update({"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor})
    return functions[operation](old, first)
