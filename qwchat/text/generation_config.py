"""Sampling defaults of a model, from its `generation_config.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.json_fields import JsonFields
from quant.safe_files import read_json_object
from qwchat.errors import ModelError
from qwchat.limits import MAX_INTEGER, MAX_TEMPERATURE
from qwchat.request import SamplingParams

FILE_NAME = "generation_config.json"
SIZE_LIMIT = 1 << 20  # bytes; published files have about 250


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling defaults of a model, named as in its file and within the ranges of `SamplingParams`.

    Attributes:
        do_sample: False means greedy decoding, regardless of the temperature.
        temperature: temperature of the file; 0.0 if `do_sample` is False.
        top_k: 0 is off.
        top_p: 1.0 is off.
        min_p: 0.0 is off.
        repetition_penalty: 1.0 is off.
        eos_token_ids: ids that end a reply: those of this file, then those of config.json. Qwen2 has two here and one
            there.
        max_new_tokens: None if the file does not set a limit.
    """

    do_sample: bool = False
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None

    @property
    def sampling(self) -> SamplingParams:
        """Sampling parameters; `do_sample: false` is temperature 0."""
        return SamplingParams(
            temperature=self.temperature if self.do_sample else 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repetition_penalty,
        )

    @classmethod
    def from_folder(cls, folder: str | Path, config_eos_token_ids: Sequence[int] = ()) -> GenerationDefaults:
        """Read `generation_config.json`. Without this file, the defaults are greedy.

        Args:
            folder: model folder or checkpoint.
            config_eos_token_ids: ids from config.json.

        Raises:
            ModelError: the file is not a JSON object, or a value has the wrong type or is out of range.
        """
        path = Path(folder) / FILE_NAME
        values = read_json_object(path, ModelError, SIZE_LIMIT) if path.exists() else {}
        return cls.from_dict(values, str(path), config_eos_token_ids)

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], where: str, config_eos_token_ids: Sequence[int] = ()
    ) -> GenerationDefaults:
        """Return the defaults in a parsed file. Missing and null values mean off, not the default of another library.

        Args:
            values: content of the file.
            where: name of the file for messages.
            config_eos_token_ids: ids from config.json.

        Raises:
            ModelError: a value has the wrong type or is out of range.
        """
        fields = JsonFields(values, where, ModelError)
        do_sample = fields.boolean("do_sample", False)
        temperature = fields.number("temperature", 0.0, MAX_TEMPERATURE, 1.0)
        eos = dict.fromkeys((*fields.token_ids("eos_token_id"), *config_eos_token_ids))
        return cls(
            do_sample=do_sample,
            temperature=temperature if do_sample else 0.0,
            top_k=fields.integer("top_k", 0, MAX_INTEGER, 0),
            top_p=fields.number("top_p", 1e-6, 1.0, 1.0),
            min_p=fields.number("min_p", 0.0, 1.0, 0.0),
            repetition_penalty=fields.number("repetition_penalty", 1e-6, 1e6, 1.0),
            eos_token_ids=tuple(eos),
            max_new_tokens=fields.integer("max_new_tokens", 0, MAX_INTEGER, 0) or None,
        )
