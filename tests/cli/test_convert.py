"""The default destination of `qwchat convert`."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.errors import ArgumentError
from qwchat.cli.convert import default_destination
from qwchat.cli.options import ConvertOptions


@pytest.mark.parametrize(
    ("preset", "bits", "group_size", "suffix"),
    [
        (None, None, None, "q4"),
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


def test_bits_that_no_format_has_are_refused_before_a_folder_is_made() -> None:
    with pytest.raises(ArgumentError, match="3 bits are not supported; choose 4 or 8"):
        default_destination(ConvertOptions(source=Path("Tiny"), bits=3))
