"""The forward pass of models in formats of other programs."""

from __future__ import annotations

import numpy as np
import pytest

from quant.formats import GroupedFormat
from tests.cpu.kernels.random_tensors import Folder
from tests.cpu.random_models import config, random_folder, reference
from tests.generation.conversations import open_context
from tests.quant.imported_parts import IMPORTED, weights

IDS = np.random.default_rng(3).integers(0, 301, 70).tolist()
SHAPES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}


def imported_folder(*formats: GroupedFormat) -> Folder:
    """Return a model whose matrices, the embedding among them, take turns in the formats."""
    folder = random_folder(config(**SHAPES))
    matrices = [name for name, packed in folder._tensors.items() if len(packed.shape) == 2]
    for number, name in enumerate(matrices):
        rows, columns = folder._tensors[name].shape
        folder._tensors[name] = weights(formats[number % len(formats)], (rows, columns), number)
    return folder


@pytest.mark.parametrize("fmt", IMPORTED, ids=lambda fmt: fmt.name)
def test_logits_equal_the_decoder(fmt: GroupedFormat) -> None:
    folder = imported_folder(fmt)
    expected = reference(folder).logits(IDS)
    with open_context(folder, threads=1) as built:
        errors = np.abs(built.logits(IDS) - expected).mean(axis=1) / np.abs(expected).mean()
    # An activation near a rounding boundary may be rounded the other way, which affects about half of the tokens.
    assert np.quantile(errors, 0.25) < 1e-5
    assert errors.max() < 2e-2


def test_logits_do_not_depend_on_the_number_of_tokens() -> None:
    with open_context(imported_folder(*IMPORTED), threads=2) as built:
        expected = built.logits(IDS)
        for chunk in (1, 2, 3, 5, 8, 9, 64):
            built.truncate(0)
            assert np.array_equal(built.extend(IDS, chunk), expected)
