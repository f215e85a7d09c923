"""Functions from text: kernels whose unrolled code needs a local variable for each of many sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def define(source: str, name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Return the function `name` that the module text `source` defines.

    Args:
        source: text of a module, written by this package.
        name: name of the function.
        names: what the text may refer to.
    """
    space = dict(names)
    exec(compile(source, f"<{name}>", "exec"), space)
    function: Callable[..., Any] = space[name]
    return function
