"""Packed checkpoints of compressed-tensors: our values are those of its own packer and of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.sources import QuantisedRows, open_source
from quant.sources.packed import open_packed
from tests.oracle.reference import torch, transformers
from tests.quant.checkpoints import encode, write_json, write_safetensors
from tests.quant.sources.packing import FORMS, Entries, Form, integers, make_packed

compressor = pytest.importorskip(
    "compressed_tensors.compressors", reason="compressed-tensors is not installed (extra `oracle`)"
)
FORMS_OF_LIBRARY = [form for form in FORMS if form.method == "compressed-tensors"]


def values_of(rows: Any) -> np.ndarray:
    return rows.dequantise() if isinstance(rows, QuantisedRows) else rows


@pytest.mark.parametrize("form", FORMS_OF_LIBRARY, ids=lambda form: form.name)
def test_transformers_reads_the_same_values(tmp_path: Path, form: Form) -> None:
    # transformers 5.24 cannot load packed zero points unless it decompresses the weights while it reads them, which it
    # does in the type of the scales.
    form = form if form.symmetric else replace(form, scale_type="f32")
    grids = make_packed(tmp_path, form)
    options = {} if form.symmetric else {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)
    with torch.no_grad():
        model(torch.arange(4)[None])  # the first use decompresses the weights
    weights = model.state_dict()
    with open_source(tmp_path) as source:
        for name in grids:
            assert np.array_equal(values_of(source.read(name)), weights[name].numpy())


@pytest.mark.parametrize(("group_size", "columns"), [(0, 128), (0, 200), (32, 96), (64, 192)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_files_of_the_library_are_read(
    tmp_path: Path, bits: int, symmetric: bool, group_size: int, columns: int
) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    grouped = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, **grouped)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    generator = torch.Generator().manual_seed(bits + columns)
    rows, groups = 40, columns // group_size if group_size else 1
    half = 1 << (bits - 1)
    state = {
        "weight": torch.randn((rows, columns), generator=generator),
        "weight_scale": (torch.rand((rows, groups), generator=generator) * 8 / half).half().float() + 1 / 64,
        "weight_zero_point": torch.randint(-half, half, (rows, groups), generator=generator, dtype=torch.int8),
    }
    if symmetric:
        state["weight_zero_point"].zero_()
    packed = PackedQuantizationCompressor.compress(state, scheme)
    expected = PackedQuantizationCompressor.decompress(dict(packed), scheme)["weight"].numpy()
    entries: Entries = {
        f"m.{name}": encode(tensor.numpy(), "f32")
        if name == "weight_scale"
        else integers(tensor.numpy(), "I64" if tensor.dtype == torch.int64 else "I32")
        for name, tensor in packed.items()
    }
    form = Form("library", "compressed-tensors", bits, group_size, symmetric)
    write_json(tmp_path / "config.json", {"quantization_config": form.config})
    write_safetensors(tmp_path / "model.safetensors", entries)
    with open_packed(tmp_path) as source:
        assert np.array_equal(values_of(source.read("m.weight")), expected)
        assert np.array_equal(values_of(source.read("m.weight", 3, 21)), expected[3:21])
