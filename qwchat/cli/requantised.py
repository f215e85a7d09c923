"""Summary of the tensors of a quantised source whose quantised values a conversion could not keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Requantised:
    """Tensors that came from one quantised type and became one format. `error` is the largest of their errors."""

    source_type: str
    format: str
    tensors: int
    error: float

    @property
    def text(self) -> str:
        """The tensors in words, such as `29 tensors from q6_k to q8, relative error up to 0.0061`."""
        count = "1 tensor" if self.tensors == 1 else f"{self.tensors} tensors"
        return f"{count} from {self.source_type} to {self.format}, relative error up to {self.error:.4f}"


def summarise(entries: Iterable[Mapping[str, Any]]) -> list[Requantised]:
    """Return the tensors by type and format, from the entries of a manifest."""
    errors: dict[tuple[str, str], list[float]] = {}
    for entry in entries:
        if source_type := entry.get("requantised_from"):
            errors.setdefault((source_type, entry["format"]), []).append(entry["relative_error"])
    return [Requantised(*kind, len(found), max(found)) for kind, found in errors.items()]
