"""GGUF files hold the numbers of the checkpoint under the names of llama.cpp, which can run them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import quant
from benchmarks.cells import Setting
from benchmarks.gguf_files import (
    TYPE_CONTROL,
    TYPE_NORMAL,
    TYPE_UNUSED,
    TYPE_USER_DEFINED,
    checkpoint_tensors,
    gguf_values,
    make_gguf,
    merge_lines,
    token_table,
)
from benchmarks.make_checkpoint import make_checkpoint, to_bfloat16
from quant.container import open_model
from qwchat.cpu.build import build_decoder
from qwchat.generation.cached_context import CachedContext

MINI = Path(__file__).resolve().parents[2] / "models" / "mini"
TOKENIZER = {
    "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"], "ab a"]},
    "added_tokens": [{"id": 3, "content": "<end>", "special": True}, {"id": 4, "content": "<use>", "special": False}],
}
CONFIG = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of two layers with the tokenizer of mini."""
    vocab_size = json.loads((MINI / "config.json").read_text())["vocab_size"]
    values = {**CONFIG, "vocab_size": vocab_size, "tie_word_embeddings": False}
    folder = make_checkpoint(values, tmp_path_factory.mktemp("gguf") / "tiny")
    shutil.copyfile(MINI / "tokenizer.json", folder / "tokenizer.json")
    return folder


def test_ids_without_a_token_are_unused() -> None:
    tokens, types = token_table(TOKENIZER, 6)
    assert tokens == ["a", "b", "ab", "<end>", "<use>", "[PAD5]"]
    assert types == [TYPE_NORMAL] * 3 + [TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED]


def test_merges_of_both_spellings() -> None:
    assert merge_lines(TOKENIZER) == ["a b", "ab a"]


def test_vectors_become_f32() -> None:
    values = np.array([1.5, -2.0, 600.0], np.float32)
    np.testing.assert_array_equal(gguf_values(to_bfloat16(values)), values)
    matrix = np.zeros((2, 2), np.uint16)
    assert gguf_values(matrix) is matrix


def test_the_bf16_file_holds_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from benchmarks.gguf_files import write_bf16_gguf

    write_bf16_gguf(checkpoint, tmp_path / "tiny.gguf")
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    source = dict(checkpoint_tensors(checkpoint))
    assert len(written) == len(source)
    for name, known in (
        ("model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
        ("lm_head.weight", "output.weight"),
    ):
        assert written[known].data.tobytes() == source[name].tobytes()
    bias = source["model.layers.0.self_attn.k_proj.bias"]
    np.testing.assert_array_equal(written["blk.0.attn_k.bias"].data, gguf_values(bias))


def test_a_type_of_ik_llama_cpp_is_made_by_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2 $3" = "benchmarks.ik_engine quantise" ] && echo "$6 of $(cat "$4")" > "$5"\n')
    python.chmod(0o755)
    monkeypatch.setattr("benchmarks.gguf_files.write_bf16_gguf", lambda checkpoint, path: path.write_text("bf16"))
    (path,) = make_gguf(tmp_path / "tiny", tmp_path / "made", ["IQ4_KS"], 1, python).values()
    assert path.read_text() == "IQ4_KS of bf16\n"
    assert [file.name for file in path.parent.iterdir()] == ["tiny-IQ4_KS.gguf"]
    python.write_text("#!/bin/sh\necho first >&2\necho last >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match=r"could not quantise .* to IQ4_KS: last"):
        make_gguf(tmp_path / "tiny", tmp_path / "again", ["IQ4_KS"], 1, python)
    assert not list((tmp_path / "again").iterdir())


def test_llama_cpp_runs_the_files(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from benchmarks.llama_engine import LlamaContext, LlamaModel

    (path,) = make_gguf(checkpoint, tmp_path, ["Q8_0"], 1).values()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    model = LlamaModel(path, repack=True, threads=1)
    for setting in (Setting("f16", "f16", True, False, 64), Setting("q8_0", "q8_0", True, True, 64)):
        context = LlamaContext(model, setting, 1024)
        # With another saved form, the cache would be filled by evaluation, and deep cells would take minutes.
        assert context.fill(list(range(600)))
        assert context.decode(600, 2) > 0
        assert context.prefill(list(range(100))) > 0
        context.close()


def test_both_engines_compute_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from benchmarks.llama_engine import LlamaContext, LlamaModel

    tokens = list(range(100, 140))
    (path,) = make_gguf(checkpoint, tmp_path, ["Q8_0"], 1).values()
    theirs = LlamaContext(LlamaModel(path, repack=False, threads=1), Setting("f16", "f16", False, False, 64), 256)
    theirs.prefill(tokens)
    for _ in quant.convert(checkpoint, tmp_path / "ours", preset="q8", threads=1):
        pass
    decoder = build_decoder(open_model(tmp_path / "ours"), threads=1, context=256)
    ours = CachedContext(decoder).logits(tokens)[-1]
    decoder.close()
    # Both round the same weights to 8 bits in groups of 32, but to different codes.
    assert np.corrcoef(theirs.last_logits(), ours)[0, 1] > 0.98
    theirs.close()
