"""Sampling defaults are read by type, from files that may be wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qwchat.errors import ModelError
from qwchat.request import SamplingParams
from qwchat.text.generation_config import GenerationDefaults


def read(values: dict[str, Any], *config_ids: int) -> GenerationDefaults:
    return GenerationDefaults.from_dict(values, "generation_config.json", config_ids)


def test_the_published_file(qwen2_folder: Path) -> None:
    defaults = GenerationDefaults.from_folder(qwen2_folder, (151645,))
    assert defaults == GenerationDefaults(True, 0.7, 20, 0.8, 0.0, 1.05, (151645, 151643), None)
    assert defaults.sampling == SamplingParams(0.7, 20, 0.8, repeat_penalty=1.05)


def test_a_base_model_is_greedy_and_ends_at_both_ids() -> None:
    defaults = read({"do_sample": False, "temperature": 0.9, "eos_token_id": 151643, "max_new_tokens": 2048}, 7, 151643)
    assert defaults.temperature == 0.0
    assert defaults.eos_token_ids == (151643, 7)
    assert defaults.max_new_tokens == 2048
    assert defaults.sampling.temperature == 0.0


def test_missing_and_null_values_are_off(tmp_path: Path) -> None:
    off = GenerationDefaults(eos_token_ids=(5,))
    assert GenerationDefaults.from_folder(tmp_path, (5,)) == off
    keys = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id")
    assert read(dict.fromkeys(keys), 5) == off
    assert read({"do_sample": True}).temperature == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_sample": "yes"}, "do_sample is 'yes', expected true or false"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number from 0 to 5"),
        ({"temperature": True}, "temperature is True, expected a number from 0 to 5"),
        ({"temperature": -1}, "temperature is -1, expected a number from 0 to 5"),
        ({"temperature": float("nan")}, "temperature is nan, expected a number from 0 to 5"),
        ({"temperature": 10**400}, "temperature is a number with many digits, expected a number from 0 to 5"),
        ({"top_p": 2}, "top_p is 2, expected a number from 1e-06 to 1"),
        ({"top_p": 0}, "top_p is 0, expected a number from 1e-06 to 1"),
        ({"top_k": 1.5}, "top_k is 1.5, expected an integer from 0 to 2147483647"),
        ({"top_k": -3}, "top_k is -3, expected an integer from 0"),
        ({"top_k": 2**70}, "top_k is 1180591620717411303424, expected an integer from 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected a number from"),
        ({"eos_token_id": ["x"]}, "eos_token_id is ['x'], expected a token id or a list of token ids"),
        ({"eos_token_id": -1}, "eos_token_id is -1, expected a token id"),
        ({"eos_token_id": 2**70}, "eos_token_id is 1180591620717411303424, expected a token id"),
        ({"eos_token_id": [7] * 1000}, "eos_token_id lists 1,000 token ids, expected at most 256"),
        ({"max_new_tokens": [1]}, "max_new_tokens is [1], expected an integer"),
        ({"max_new_tokens": 2**70}, "max_new_tokens is 1180591620717411303424, expected an integer"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(values)
    assert str(caught.value).startswith(f"generation_config.json: {message}")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"top_k": ' + b"9" * 5000 + b"}"])
def test_broken_files_are_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(raw)
    with pytest.raises(ModelError, match=r"generation_config\.json .*get the file again"):
        GenerationDefaults.from_folder(tmp_path)


def test_the_size_is_checked_before_the_file_is_read(tmp_path: Path) -> None:
    with (tmp_path / "generation_config.json").open("wb") as file:
        file.truncate(40 << 30)  # a sparse file: reading it would need 40 GB of memory
    with pytest.raises(ModelError, match=r"generation_config\.json is larger than the limit of 1,048,576 bytes"):
        GenerationDefaults.from_folder(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(ModelError, match=r"generation_config\.json is not a regular file"):
        GenerationDefaults.from_folder(tmp_path)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("top_p", [1e-6, 1.0])
@pytest.mark.parametrize("penalty", [1e-6, 1.0, 1e6])
def test_values_of_any_file_are_valid_parameters(temperature: float, top_p: float, penalty: float) -> None:
    values = {"do_sample": True, "temperature": temperature, "top_p": top_p, "repetition_penalty": penalty}
    settings = read({**values, "top_k": 10**9, "min_p": 1.0}).sampling
    assert (settings.temperature, settings.top_p, settings.repeat_penalty) == (temperature, top_p, penalty)
