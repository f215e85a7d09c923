"""Quantise Hugging Face Qwen2 checkpoints into model folders for qwchat.

`quant.convert(source, destination, ...)` is the public function. `quant.conversion` defines the events that it yields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.conversion import convert

__all__ = ["convert"]


def __getattr__(name: str) -> Any:
    # Imported on demand, so that opening a converted model loads neither the converter nor its compiler.
    if name == "convert":
        from quant.conversion import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
