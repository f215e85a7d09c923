"""The unquantised model layer by layer: the bits of the whole model, with one layer of weights at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quant import convert
from quant.container import open_model
from quant.errors import CheckpointError
from quant.families import expected_tensors, parse_config
from quant.formats import dequantise
from quant.quantisers import quantise
from quant.sources import open_source
from qwchat.calibration import source_tensors
from qwchat.calibration.source_tensors import SourceTensors
from qwchat.calibration.streamed_model import open_head, open_layer
from qwchat.cpu.decoder import CpuDecoder
from tests.quant.checkpoints import CONFIG, make_checkpoint, random_tensors
from tests.quant.sources.memory import MemorySource, grouped

SHAPES = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
EMBEDDING, GATE = "model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight"


def ids(tokens: int) -> np.ndarray:
    return np.random.default_rng(tokens).integers(0, CONFIG["vocab_size"], tokens)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_tensors_are_those_of_a_dense_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, piece: int
) -> None:
    monkeypatch.setattr(source_tensors, "_PIECE_WEIGHTS", piece)
    list(convert(make_checkpoint(tmp_path / "source", dtype=dtype), tmp_path / "dense", preset="dense"))
    dense = open_model(tmp_path / "dense")
    with open_source(tmp_path / "source") as source:
        tensors = SourceTensors(source, threads=3)
        for name in dense.names:
            expected, found = dense.tensor(name), tensors.tensor(name)
            assert (found.format, found.shape) == (expected.format, expected.shape)
            assert np.array_equal(found.parts["values"], expected.parts["values"])


def test_quantised_matrices_have_the_values_of_their_codes() -> None:
    contents = dict(random_tensors(parse_config(CONFIG)))
    codes = grouped(contents[GATE].shape, 4, 32, np.random.default_rng(1))
    with MemorySource(CONFIG, contents | {GATE: codes}) as source:
        found = SourceTensors(source, threads=2).tensor(GATE)
        assert np.array_equal(dequantise(found), codes.dequantise())


def test_replaced_tensors_come_first() -> None:
    contents = dict(random_tensors(parse_config(CONFIG)))
    other, _ = quantise("q4", contents[EMBEDDING], 32)
    with MemorySource(CONFIG, contents) as source:
        plain = SourceTensors(source, threads=1)
        changed = plain.replacing({EMBEDDING: other})
        assert changed.tensor(EMBEDDING) is other
        assert changed.tensor(GATE).format == plain.tensor(GATE).format == "f32"
        tokens = ids(9)
        assert np.array_equal(changed.embed(tokens), dequantise(other)[tokens])
        assert np.array_equal(plain.embed(tokens), contents[EMBEDDING][tokens])


def test_values_that_are_not_finite_are_refused() -> None:
    contents = dict(random_tensors(parse_config(CONFIG)))
    contents[GATE][3, 5] = np.nan
    with MemorySource(CONFIG, contents) as source, pytest.raises(CheckpointError, match=f"{GATE} has values that are"):
        SourceTensors(source, threads=1).tensor(GATE)


@pytest.mark.parametrize("tied", [False, True])
def test_layer_by_layer_gives_the_bits_of_the_whole_model(tmp_path: Path, tied: bool) -> None:
    make_checkpoint(tmp_path / "source", config_overrides=SHAPES | {"tie_word_embeddings": tied})
    list(convert(tmp_path / "source", tmp_path / "dense", preset="dense"))
    tokens = ids(150)  # More than a chunk.
    whole = CpuDecoder(open_model(tmp_path / "dense"), context=150, threads=1, kv="f32")
    cache = whole.make_cache()
    pieces = [(start, tokens[start : start + whole.chunk]) for start in range(0, len(tokens), whole.chunk)]
    expected = np.concatenate([whole.run(piece, start, 0, cache).copy() for start, piece in pieces])
    whole.close()
    with open_source(tmp_path / "source") as source:
        tensors = SourceTensors(source, threads=2)
        residual = tensors.embed(tokens)
        for layer in range(3):
            with open_layer(tensors, layer, context=150, threads=2) as run:
                run(residual)
        with open_head(tensors, threads=2) as head:
            logits = np.concatenate([head(residual[start : start + len(piece)]).copy() for start, piece in pieces])
    assert np.array_equal(logits, expected)


def test_a_layer_reads_only_its_own_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "source", config_overrides=SHAPES)
    read: list[str] = []
    with open_source(tmp_path / "source") as source:
        tensors = SourceTensors(source, threads=1)
        original = tensors.tensor
        monkeypatch.setattr(tensors, "tensor", lambda name: (read.append(name), original(name))[1])
        for layer in (0, 2):
            read.clear()
            with open_layer(tensors, layer, context=8, threads=1):
                pass
            own = {name for name in expected_tensors(source.config) if name.startswith(f"model.layers.{layer}.")}
            assert set(read) == own
        read.clear()
        with open_head(tensors, threads=1):
            pass
        assert set(read) == {"model.norm.weight", "lm_head.weight"}
