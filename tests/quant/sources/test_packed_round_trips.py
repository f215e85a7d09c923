"""Imports proven by exports: codes, scales and zero points that were read come out again, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.exporters import export
from quant.sources.huggingface import HuggingFaceCheckpoint
from tests.quant.converting import run
from tests.quant.sources.packing import FORMS, Form, compressed, make_packed

GROUPED = [form for form in FORMS if form.group_size]


@pytest.mark.parametrize("form", GROUPED, ids=lambda form: form.name)
def test_an_export_has_the_bytes_of_the_import(tmp_path: Path, form: Form) -> None:
    grids = make_packed(tmp_path / "source", form)
    run(tmp_path / "source", tmp_path / "model")
    for _ in export(tmp_path / "model", tmp_path / "export", "compressed-tensors"):
        pass
    with HuggingFaceCheckpoint.open(tmp_path / "export", integers=True) as checkpoint:
        for name, grid in grids.items():
            expected = compressed(name.removesuffix(".weight"), grid, symmetric=form.symmetric)
            for part, (_, shape, data) in expected.items():
                if part.endswith(".weight_scale"):
                    scales = checkpoint.read(part)
                    assert (scales == grid.scales).all()
                else:
                    assert checkpoint.stored[part].shape == shape
                    if not part.endswith(".weight_shape"):
                        assert checkpoint.raw(part).tobytes() == data
