"""Files that cases start from: a tiny checkpoint, its conversion, a session and a snapshot, all from one seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.quant.checkpoints import make_checkpoint
from tests.quant.sources.gguf.models import write_model

TINY = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "vocab_size": 288,
    "max_position_embeddings": 512,
}
SESSION = "0a1b2c3d"
QUESTION = ("--max-tokens", "3", "--seed", "1", "--temp", "0", "--no-speculate")


@dataclass(frozen=True)
class Base:
    """Files that cases copy.

    Attributes:
        checkpoint: checkpoint in one file.
        sharded: checkpoint in shards.
        gguf: folder with a quantised model as model.gguf.
        model: conversion of `checkpoint`.
        session: session with that model, its snapshot, and the reply to a further prompt.
        code: compiled code by its path in the cache folder; without it, a start takes half a minute.
    """

    checkpoint: Path
    sharded: Path
    gguf: Path
    model: Path
    session: Path
    code: Mapping[str, bytes] = field(default_factory=dict)


def make_checkpoints(folder: Path) -> None:
    """Write the two checkpoints and the GGUF file under `folder`."""
    make_checkpoint(folder / "checkpoint", config_overrides=TINY)
    make_checkpoint(folder / "sharded", config_overrides={**TINY, "tie_word_embeddings": True}, dtype="f16", shards=3)
    (folder / "gguf").mkdir()
    write_model(folder / "gguf" / "model.gguf", _kind_of, config_overrides={**TINY, "hidden_size": 64})


def _kind_of(name: str) -> str:
    """Return the type of a matrix of the GGUF file."""
    return {"q_proj": "q4_0", "k_proj": "q5_1", "o_proj": "q4_1"}.get(name.split(".")[-2], "q8_0")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a base folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def parsed(folder: Path, name: str) -> Any:
    """Return the contents of a JSON file of a base folder."""
    return json.loads((folder / name).read_bytes())


def manifest_with(manifest: dict[str, Any], changed: dict[str, bytes]) -> bytes:
    """Return the manifest with correct checksums of the `changed` files, as the owner of the folder would write it."""
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(changed.items())
    }
    return json.dumps({**manifest, "files": {**manifest["files"], **files}}).encode()


def session_lines(folder: Path) -> list[bytes]:
    """Return the lines of the base session."""
    return (folder / "session.jsonl").read_bytes().splitlines(keepends=True)
