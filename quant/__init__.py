"""Quantising Hugging Face Qwen2 checkpoints into folders that qwchat runs.

`quant.convert(source, destination, ...)` is the public function; `quant.conversion` has its events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.conversion import convert

__all__ = ["convert"]


def __getattr__(name: str) -> Any:
    # Lazy: opening a converted model must not pull in the pipeline and its compiler.
    if name == "convert":
        from quant.conversion import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
