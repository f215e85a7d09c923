"""Chat with a quantised Qwen2 model on a CPU.

`qwchat.load(model)` opens a converted model and returns a `qwchat.Model`. Modules are imported on first use, which
keeps `import qwchat` and `qwchat --help` fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwchat.api import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "load"):
        from qwchat import api

        return getattr(api, name)
    raise AttributeError(f"module 'qwchat' has no attribute {name!r}")
