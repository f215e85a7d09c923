"""Damaged and disguised files: a refusal in one line, or the values that gguf-py reads."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from quant.errors import CheckpointError
from quant.sources import QuantisedRows, check_tensors, open_source
from quant.sources.gguf.names import gguf_name
from tests.quant.sources.gguf.models import values_in, write_model
from tests.quant.sources.gguf.mutations import Parts, mutate
from tests.tiers import count

CASES = count(2000, 40)
GROUPS = count(8, 1)
BASELINE_BYTES = 1 << 20
"""Memory for the objects of Python, which does not depend on the file."""
KINDS = ("q4_k", "q6_k", "q8_0", "q5_0", "q4_0", "iq4_xs", "q3_k", "f16")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    numbers = iter(range(1000))
    file = tmp_path_factory.mktemp("intact") / "model.gguf"
    write_model(
        file,
        lambda name: KINDS[next(numbers) % len(KINDS)],
        config_overrides={"intermediate_size": 256, "num_hidden_layers": 1},
    )
    return Parts.of_file(file)


def load(file: Path) -> dict[str, np.ndarray]:
    """Read everything that a conversion reads. Return the values of each tensor by its GGUF name."""
    with open_source(file) as source:
        assert source.files["config.json"]
        assert len(source.fingerprint) == 64
        notices = check_tensors(source)
        assert all(isinstance(notice, str) for notice in notices)
        values = {}
        for name in source.tensors:
            rows = source.read(name)
            values[gguf_name(name) or ""] = rows.dequantise() if isinstance(rows, QuantisedRows) else rows
        return values


def memory_of_opening(file: Path) -> int:
    """Return the peak in bytes of opening a file and making its small files, if it is not refused."""
    tracemalloc.start()
    try:
        with open_source(file) as source:
            source.files  # noqa: B018
    except CheckpointError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("group", range(GROUPS))
def test_mutated_files(tmp_path: Path, parts: Parts, group: int) -> None:
    file = tmp_path / "model.gguf"
    outcomes: Counter[str] = Counter()
    for number in range(group, CASES, GROUPS):
        what, data = mutate(Random(number), parts)
        file.write_bytes(data)
        try:
            values = load(file)
        except CheckpointError as error:
            message = str(error)
            assert message.count(str(file)) == 1, (number, what, message)
            assert message.isprintable(), (number, what, message)
            outcomes["refused"] += 1
        else:
            with np.errstate(all="ignore"):
                expected = values_in(file)
            assert values.keys() == expected.keys(), (number, what)
            for name, read in values.items():
                assert np.array_equal(read, expected[name], equal_nan=True), (number, what, name)
            outcomes["loaded"] += 1
        assert memory_of_opening(file) <= 2 * len(data) + BASELINE_BYTES, (number, what)
    assert set(outcomes) == {"refused", "loaded"}


def test_the_intact_file_is_read(tmp_path: Path, parts: Parts) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(parts.data())
    values, expected = load(file), values_in(file)
    assert values.keys() == expected.keys()
    assert all(np.array_equal(values[name], expected[name]) for name in expected)
