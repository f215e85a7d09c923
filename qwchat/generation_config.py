"""The sampling defaults that a model brings along in `generation_config.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwchat.errors import ModelError

FILE_NAME = "generation_config.json"
SIZE_LIMIT = 1 << 20  # bytes; the real files have about 250


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of a model, in the terms of its file and within the ranges of `qwchat.sampling.SamplingSettings`.

    Attributes:
        do_sample: False means greedy decoding, whatever the temperature says.
        temperature: as stated, 0.0 where `do_sample` is false.
        top_k: 0 is off.
        top_p: 1.0 is off.
        min_p: 0.0 is off.
        repetition_penalty: 1.0 is off.
        eos_token_ids: every id that ends a reply: those of this file, then those of config.json (Qwen2 states two here
            and one there).
        max_new_tokens: None where the file sets no limit.
    """

    do_sample: bool = False
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, config_eos_token_ids: Sequence[int] = ()) -> GenerationDefaults:
        """Read `generation_config.json`; a model without the file decodes greedily.

        Args:
            folder: a model folder or a checkpoint.
            config_eos_token_ids: the ids that config.json states.

        Raises:
            ModelError: the file is no JSON object, or a value has the wrong type or is out of range.
        """
        path = Path(folder) / FILE_NAME
        try:
            raw = path.read_bytes() if path.is_file() else b"{}"
            if len(raw) > SIZE_LIMIT:
                raise ModelError(f"{path} has {len(raw):,} bytes, more than a generation config can: restore the file")
            values = json.loads(raw)
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read ({error}): restore the file from its source") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} holds no JSON object: restore the file from its source")
        return cls.from_dict(values, str(path), config_eos_token_ids)

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], where: str, config_eos_token_ids: Sequence[int] = ()
    ) -> GenerationDefaults:
        """Typed reading; `where` names the source in errors. Absent and null values are off, not a library's default.

        Raises:
            ModelError: a value has the wrong type or is out of range.
        """
        read = _Reader(values, where)
        do_sample = read.flag("do_sample")
        temperature = read.number("temperature", 1.0, 0.0, 5.0)
        eos = dict.fromkeys((*read.ids("eos_token_id"), *config_eos_token_ids))
        return cls(
            do_sample=do_sample,
            temperature=temperature if do_sample else 0.0,
            top_k=read.count("top_k", 0) or 0,
            top_p=read.number("top_p", 1.0, 1e-6, 1.0),
            min_p=read.number("min_p", 0.0, 0.0, 1.0),
            repetition_penalty=read.number("repetition_penalty", 1.0, 1e-6, 1e6),
            eos_token_ids=tuple(eos),
            max_new_tokens=read.count("max_new_tokens", None) or None,
        )


class _Reader:
    """Values of one JSON object by type and range."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self._where = where

    def flag(self, key: str) -> bool:
        value = self._values.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self._wrong(key, "true or false")

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise self._wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def count(self, key: str, default: int | None) -> int | None:
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(key, "a whole number from 0")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        value = self._values.get(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed):
            raise self._wrong(key, "a token id or a list of token ids")
        return tuple(listed)

    def _wrong(self, key: str, wanted: str) -> ModelError:
        shown = repr(self._values[key])
        return ModelError(f"{self._where}: {key} must be {wanted}, not {shown[:60]}: correct the file")
