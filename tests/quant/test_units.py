"""Data sizes as text."""

from __future__ import annotations

import pytest

from quant.units import binary_size, data_size


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (15_231_233_024, "15.2 GB"), (2e12, "2.0 TB")],
)
def test_sizes_in_powers_of_ten(count: float, shown: str) -> None:
    assert data_size(count) == shown


def test_more_decimals_tell_close_sizes_apart() -> None:
    assert data_size(15_231_233_024, 2) == "15.23 GB"
    assert data_size(123_456_789, 2) == "123.46 MB"
    assert data_size(123_456_789) == "123 MB"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1 << 16, "64 KiB"),
        (1 << 20, "1 MiB"),
        (8 << 20, "8 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 31, "2 GiB"),
        (5 << 40, "5,120 GiB"),
    ],
)
def test_sizes_in_powers_of_two(count: int, shown: str) -> None:
    assert binary_size(count) == shown
