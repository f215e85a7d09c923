"""The catalogue: short names of public checkpoints, and what each needs on this machine."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quant.families import parse_config
from quant.model_config import ModelConfig
from qwchat.errors import UsageError

_FILE = Path(__file__).with_name("catalogue.toml")
# Keys of config.json that the size does not depend on.
_NEUTRAL = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6}


@dataclass(frozen=True)
class CatalogueEntry:
    """A public checkpoint.

    Attributes:
        name: what it is called here, such as "qwen2.5:7b".
        repository: where it is on the hub.
        licence: as the repository states it.
        config: its sizes.
    """

    name: str
    repository: str
    licence: str
    config: ModelConfig

    @property
    def folder_name(self) -> str:
        """The name of its model folder, without the preset."""
        return self.name.replace(":", "-")


@cache
def entries() -> tuple[CatalogueEntry, ...]:
    """Return the catalogue in its order."""
    table = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(
        CatalogueEntry(
            model["name"],
            model["repository"],
            model["licence"],
            parse_config(
                {**_NEUTRAL, **table["shapes"][model["shape"]], "max_position_embeddings": model["context"]},
                model["name"],
            ),
        )
        for model in table["models"]
    )


def find_entry(name: str) -> CatalogueEntry | None:
    """Return the entry of that name, in any case; None if there is no such entry."""
    return next((entry for entry in entries() if entry.name == name.lower()), None)


def resolve_repository(text: str) -> tuple[str, str, str]:
    """Return repository, revision and the name of the model folder without its preset.

    Args:
        text: a name of the catalogue, or OWNER/NAME[@REVISION].

    Raises:
        UsageError: it is neither; the nearest names are given.
    """
    from qwchat.store.hub import parse_repository

    if entry := find_entry(text):
        return entry.repository, "main", entry.folder_name
    if "/" in text:
        repository, revision = parse_repository(text)
        return repository, revision, repository.rpartition("/")[2]
    close = difflib.get_close_matches(text.lower(), [entry.name for entry in entries()], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "run qwchat pull for the list, or give OWNER/NAME"
    raise UsageError(f"{text[:200]!r} is not in the catalogue: {hint}")
