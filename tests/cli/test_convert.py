"""The default destination of `qwchat convert`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quant.errors import ArgumentError
from quant.families import parse_config
from quant.sources import QuantisedRows, Rows
from qwchat.cli.convert import default_destination
from qwchat.cli.convert_options import ConvertOptions
from tests.quant.checkpoints import CONFIG, random_tensors
from tests.quant.sources.memory import MemorySource, grouped


@pytest.mark.parametrize(
    ("preset", "bits", "group_size", "suffix"),
    [
        (None, 8, None, "q8"),
        (None, 4, 32, "q4"),
        (None, None, 64, "lin4-g64"),
        (None, 8, 128, "lin8-g128"),
        ("q4-small", None, None, "q4-small"),
        ("lin8", None, 64, "lin8"),
    ],
)
def test_the_destination_is_named_after_the_format(
    preset: str | None, bits: int | None, group_size: int | None, suffix: str
) -> None:
    options = ConvertOptions(source=Path("Tiny"), preset=preset, bits=bits, group_size=group_size)
    assert default_destination(options).name == f"Tiny-{suffix}"


@pytest.mark.parametrize(("home", "preset"), [("", "q4"), ("lin4", "imported")])
def test_the_default_destination_depends_on_the_source(monkeypatch: pytest.MonkeyPatch, home: str, preset: str) -> None:
    config = parse_config(CONFIG)
    contents: dict[str, Rows | QuantisedRows] = dict(random_tensors(config))
    if home:
        contents["lm_head.weight"] = grouped((config.vocab_size, config.hidden_size), 4, 32, np.random.default_rng(1))
    monkeypatch.setattr("quant.sources.open_source", lambda path: MemorySource(CONFIG, contents))
    assert default_destination(ConvertOptions(source=Path("Tiny"))).name == f"Tiny-{preset}"


def test_bits_that_no_format_has_are_refused_before_a_folder_is_made() -> None:
    with pytest.raises(ArgumentError, match="3 bits are not supported; choose 4, 6 or 8"):
        default_destination(ConvertOptions(source=Path("Tiny"), bits=3))
