"""Memory by the code that allocates it, and the catalogue's sizes against published counts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from quant.container import open_model
from quant.families import parameter_count
from quant.model_config import YarnScaling
from quant.presets import PRESETS
from qwchat.cpu.build import build_decoder
from qwchat.cpu.kernels.records import SPLIT_ATTENTION_TOKENS
from qwchat.cpu.workspace import CHUNK
from qwchat.store.catalogue import entries, find_entry, resolve_repository
from qwchat.store.memory_estimate import contexts, estimate, planned_tensors, weights_bytes
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run as convert


def test_weights_and_cache_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 768, "vocab_size": 3000, "max_position_embeddings": 4096}
    source = make_checkpoint(tmp_path / "source", config_overrides=shape)
    for preset in ("q4", "q8", "dense"):
        convert(source, tmp_path / preset, preset=preset)
        folder = open_model(tmp_path / preset)
        assert estimate(folder.config, planned_tensors(folder.config, preset), 1024).weights == folder.total_bytes
    for kv in ("f32", "q8"):
        decoder = build_decoder(open_model(tmp_path / "q4"), context=2048, threads=2, kv=kv)
        cache = decoder.make_cache()
        tensors = planned_tensors(decoder.config, "q4")
        assert estimate(decoder.config, tensors, 2048, kv).cache == sum(part.nbytes for part in cache._memory)
        decoder.close()


@pytest.mark.parametrize("activations", [8, 16])
def test_the_work_space_is_that_of_the_decoder(tmp_path: Path, activations: int) -> None:
    source = make_checkpoint(tmp_path / "source", config_overrides={"hidden_size": 128})
    convert(source, tmp_path / "q8", preset="q8")
    with closing(build_decoder(open_model(tmp_path / "q8"), context=256, threads=3, activations=activations)) as built:
        config, used = built.config, built._workspace.nbytes
    found = estimate(config, planned_tensors(config, "q8"), 256, threads=3, activations=activations).workspace
    assert found == used + SPLIT_ATTENTION_TOKENS * config.vocab_size * 4
    # A second term of 44 bytes per 32 columns and token, for the inputs of all matrices, and sums of both terms.
    columns = 2 * config.hidden_size + config.intermediate_size
    assert config.num_heads * config.head_dim == config.hidden_size
    packed, sums = CHUNK * columns // 32 * 44, 3 * 2 * CHUNK * 128
    plain = estimate(config, planned_tensors(config, "q8"), 256, threads=3).workspace
    assert found - plain == (packed + sums if activations == 16 else 0)


def test_the_catalogue_has_published_sizes() -> None:
    counts = {entry.name: parameter_count(entry.config) for entry in entries()}
    assert counts["qwen2.5:7b"] == counts["qwen2.5-coder:7b"] == counts["r1:7b"] == 7_615_616_512
    assert counts["qwen2.5:0.5b"] == 494_032_768
    assert counts["qwen2.5:72b"] == 72_706_203_648
    assert counts["r1:1.5b"] == 1_777_088_000
    assert counts["qwen3:4b"] == 4_022_468_096
    assert counts["qwen3:8b"] == 8_190_735_360
    assert len({entry.name for entry in entries()}) == len(entries())


def test_names() -> None:
    assert resolve_repository("QWEN2.5:7B") == ("Qwen/Qwen2.5-7B-Instruct", "main", "qwen2.5-7b")
    assert resolve_repository("owner/Model@v1") == ("owner/Model", "v1", "Model")
    assert find_entry("qwen2.5:8b") is None


def test_contexts() -> None:
    entry = find_entry("qwen2.5:7b")
    assert entry is not None
    assert contexts(entry.config, ()) == [4096, 32768]
    assert contexts(entry.config, (1024,)) == [1024]
    yarn = replace(entry.config, rope_scaling=YarnScaling(4.0, 32768, 32.0, 1.0, 1.1))
    assert contexts(yarn, ()) == [4096, 32768, 131072]
    assert contexts(replace(entry.config, max_position_embeddings=2048), ()) == [2048]


def test_the_type_of_the_checkpoint_counts_for_dense_weights() -> None:
    entry = find_entry("qwen2.5:0.5b")
    assert entry is not None
    sizes = {
        dtype: [weights_bytes(planned_tensors(replace(entry.config, torch_dtype=dtype), preset)) for preset in PRESETS]
        for dtype in (None, "bfloat16", "float16", "float32")
    }
    assert sizes[None] == sizes["bfloat16"]
    assert sizes["float32"] == sizes["float16"]
    *quantised, dense = sizes["float32"]
    assert quantised == sizes[None][:-1]
    assert dense == pytest.approx(2 * sizes[None][-1], rel=0.001)


def test_bytes_per_token() -> None:
    """Count an embedding only if it is the head as well."""
    for name, unread in (("qwen2.5:0.5b", 0), ("qwen2.5:7b", 152064 * 3584 * 2)):
        entry = find_entry(name)
        assert entry is not None
        tensors = planned_tensors(entry.config, "dense")
        cpu = estimate(entry.config, tensors, 4096, "f32")
        assert cpu.bytes_per_token == cpu.weights - unread + cpu.cache
        assert cpu.total == cpu.weights + cpu.cache + cpu.workspace + cpu.program
