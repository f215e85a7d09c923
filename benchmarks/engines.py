"""Names of the engines that the benchmarks compare."""

from __future__ import annotations

from typing import Literal, get_args

Rival = Literal["llama.cpp", "ik_llama.cpp"]
Engine = Literal["qwchat", "llama.cpp", "ik_llama.cpp"]
RIVALS: tuple[Rival, ...] = get_args(Rival)
ENGINES: tuple[Engine, ...] = get_args(Engine)
