"""Conversions write the recorded bytes: models converted by earlier versions stay valid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.container import MANIFEST_NAME, WEIGHTS_NAME, open_model
from tests.quant.checkpoints import Tensors, make_checkpoint
from tests.quant.converting import run

SHAPES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
# (type of the checkpoint, options) -> SHA-256 of weights.bin and of the manifest's tensors without their errors.
# Errors are excluded because the order of a sum may depend on the machine. Recorded before formats had records; those
# of q4, q4-small and q6 when q6 came.
RECORDED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "bf16",
        {"preset": "q4"},
        "6a08d687c7117dead28c33f6b15cd650c01ab7792798cdb86dc4a08f10b0b133",
        "fef1fd6d1e4c83c2e0b99f69d43a1b0bf1693f29c6f5127b36931d18b08d8273",
    ),
    (
        "bf16",
        {"preset": "q4-small"},
        "ec472a3997c979d29045c10c1ae596888c96b0f8d2d807b7140fe647d0d622a6",
        "eb90832e55cb2be35de3b5102f7e9e61c37a2e93d70ba8c2f136109b18f18355",
    ),
    (
        "bf16",
        {"preset": "q6"},
        "efa27277eb10bcd4fffcd19967ba9c72141ea932055c44ced1faee9565689103",
        "a18b8fc41bed90cf586d9af7baf5e779611e1af3270f60870c7ec5c52f2a3a94",
    ),
    (
        "bf16",
        {"preset": "q8"},
        "4257b16d29ee7d5b39f7775eab9e0b0f135d482dcfdb13d5ff0c8dddbe9f60f3",
        "b23b9796136e41b9c77c11ddc031ac2aff66415a15fbc1df3133853455a9d7f5",
    ),
    (
        "bf16",
        {"preset": "lin4"},
        "d97d8bb92e3e1cdbb6e6db360cc203da10c5e4af77ccb9763dfb90e9d045a277",
        "a5dad7569e8a813d40f70a48c08d28f81a1ce11dc9acaabd179ec77fba6f9efc",
    ),
    (
        "bf16",
        {"bits": 4, "group_size": 64},
        "e4a7a5d1505ff54b8e5141358fa2b487e50429ca6c99eff815e602dc1380f408",
        "da2ce72cace4981f1ae3d03443703eb036b0f6e8aef0a96f14f09220f83fb879",
    ),
    (
        "bf16",
        {"bits": 8, "group_size": 128},
        "97f6d294021297c183c20eebb6fd1ae0b29c03f9bf6fc16f708c382d350a5126",
        "45c4aef7f7ff3a3063f556d5e956a9702d67b2ab3cd189f314e89c6bf6f11cba",
    ),
    (
        "bf16",
        {"preset": "dense"},
        "62c1e7a20d212622c3c888b37e3bf81a064ff089b031a376da6efd950032cf55",
        "b0abc205c44abf337b1a341330ecb2a096be9b82ab56543763216646f2ded5c9",
    ),
    (
        "f16",
        {"preset": "dense"},
        "5b6e66b530f870c811a8528e0c544dbc40ae007e8e850e1c00f75d62c64366c5",
        "47b37bf20ed6fca363489a25379e3686d7a08754d4ef85b23db58631868f8a84",
    ),
]


def exact_weights(tensors: Tensors) -> None:
    """Replace every tensor by products of two uniform numbers, which do not depend on a library's generator."""
    for name, values in tensors.items():
        raw = hashlib.shake_256(name.encode()).digest(4 * values.size)
        first, second = np.frombuffer(raw, "<i2").astype(np.float32).reshape(2, *values.shape) / np.float32(32768)
        tensors[name] = first * second


@pytest.mark.parametrize(
    ("dtype", "options", "weights", "tensors"), RECORDED, ids=[f"{dtype} {options}" for dtype, options, *_ in RECORDED]
)
def test_conversions_write_the_recorded_bytes(
    dtype: str, options: dict[str, Any], weights: str, tensors: str, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "source", dtype=dtype, config_overrides=SHAPES, edit=exact_weights)
    run(source, tmp_path / "model", **options)
    manifest = json.loads((tmp_path / "model" / MANIFEST_NAME).read_text())
    for entry in manifest["tensors"].values():
        del entry["relative_error"]
    found = hashlib.sha256(json.dumps(manifest["tensors"], sort_keys=True).encode()).hexdigest()
    assert hashlib.sha256((tmp_path / "model" / WEIGHTS_NAME).read_bytes()).hexdigest() == weights
    assert found == tensors
    open_model(tmp_path / "model")
