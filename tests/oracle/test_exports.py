"""Exported checkpoints, loaded by transformers and compressed-tensors, give the logits of the model.

The reference is transformers on the values of the model's tensors in float32. Our engine rounds activations to 8 bits,
so its own distance from that reference is larger than that of an export (see test_parity_quantised).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.container import open_model
from quant.exporters import export
from quant.formats import dequantise
from tests.oracle.engine import converted
from tests.oracle.reference import load_reference, logits_of, torch, transformers
from tests.oracle.test_parity_quantised import MINI, dequantised, divergence, texts
from tests.quant.exporters.exporting import imported_model, random_grid

DIALOGUES, LONGEST = 2, 150
MOST_DIVERGENCE = 1e-4


def embedded(preset: str, folder: Path) -> Path:
    """Return the embedded model in one preset."""
    if not (MINI / "model.safetensors").is_file():
        pytest.skip("models/mini, the embedded model, has no weights in this checkout")
    return converted(MINI, folder / "model", preset=preset)


def dialogues() -> list[list[int]]:
    return [list(ids[:LONGEST]) for ids in texts()[:DIALOGUES]]


def exported(model: Path, destination: Path, kind: str, **options: Any) -> Path:
    for _ in export(model, destination, kind, **options):
        pass
    return destination


def load_packed(folder: Path) -> Any:
    """Return transformers' model of a compressed-tensors checkpoint, in float32.

    transformers 5.24 cannot load packed zero points unless it decompresses the weights while it reads them.
    """
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed (extra `oracle`)")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    symmetric = all(group["weights"]["symmetric"] for group in config["config_groups"].values())
    options = {} if symmetric else {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options
    )
    return model.eval()


def mean_divergence(reference: Any, model: Any) -> float:
    """Return the mean KL divergence from the reference in nats."""
    found = [divergence(logits_of(reference, ids), logits_of(model, ids)) for ids in dialogues()]
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize("preset", ["q4", "lin4", "lin8"])
def test_a_compressed_tensors_export_gives_the_logits_of_the_model(tmp_path: Path, preset: str) -> None:
    model = embedded(preset, tmp_path)
    reference = load_reference(dequantised(model, tmp_path / "values"), torch.float32)
    packed = load_packed(exported(model, tmp_path / "export", "compressed-tensors"))
    assert mean_divergence(reference, packed) <= MOST_DIVERGENCE


def test_a_safetensors_export_differs_by_the_rounding_to_bfloat16(tmp_path: Path) -> None:
    model = embedded("q4", tmp_path)
    reference = load_reference(dequantised(model, tmp_path / "values"), torch.float32)
    rounded = load_reference(exported(model, tmp_path / "bf16", "safetensors"), torch.float32)
    assert mean_divergence(reference, rounded) <= MOST_DIVERGENCE
    exact = load_reference(exported(model, tmp_path / "f32", "safetensors", dtype="f32"), torch.float32)
    for ids in dialogues():
        np.testing.assert_array_equal(logits_of(exact, ids), logits_of(reference, ids))


def test_schemes_that_differ_between_matrices_are_found_by_their_patterns(tmp_path: Path) -> None:
    def choose(name: str, shape: tuple[int, int]) -> Any:
        if not name.endswith("_proj.weight"):
            return None
        bits = 4 if "mlp" in name else 8
        return random_grid(shape, bits, 32, -1, seed=len(name)) if "layers.1" in name or bits == 4 else None

    folder = imported_model(tmp_path / "source", choose).path
    packed = load_packed(exported(folder, tmp_path / "export", "compressed-tensors"))
    logits_of(packed, [1, 2, 3])  # Decompresses the weights.
    modules = dict(packed.named_modules())
    original = open_model(folder)
    linear = [name for name in original.names if name.endswith("_proj.weight")]
    for name in linear:
        weight = modules[name.removesuffix(".weight")].weight.detach().numpy()
        np.testing.assert_allclose(weight, dequantise(original.tensor(name)), rtol=2**-11, atol=1e-7)
    assert len({original.tensor(name).format for name in linear}) == 3
