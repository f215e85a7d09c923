"""A model that does not fit the free memory is reported before it is loaded, with what would fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.zero_models import make_zero_model
from qwchat.errors import NotEnoughMemoryError
from qwchat.models_folder import embedded_checkpoint
from qwchat.store.memory_check import check_memory
from tests.cli.runs import call

SHAPE = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
"""The sizes of Qwen2.5 1.5B: 1.6 GB at q8."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = make_zero_model(SHAPE, "q8", embedded_checkpoint(), tmp_path_factory.mktemp("models") / "m-q8")
    yield made
    shutil.rmtree(made)


def check(
    monkeypatch: pytest.MonkeyPatch, folder: Path, available: float | None, context: int | None = None, kv: str = "auto"
) -> str | None:
    free = None if available is None else int(available)
    monkeypatch.setattr("qwchat.store.memory_check.available_memory", lambda: free)
    return check_memory(folder, context, kv, 2)


@pytest.mark.parametrize("available", [None, 1.9e9, 5e9, 1e12])
def test_what_fits_is_not_mentioned(monkeypatch: pytest.MonkeyPatch, folder: Path, available: float | None) -> None:
    assert check(monkeypatch, folder, available) is None


@pytest.mark.parametrize(
    ("available", "context", "kv", "sizes", "remedy"),
    [
        (
            1.5e9, None, "auto",
            "1.8 GB of memory (1.6 GB for weights, 62.4 MB for a KV cache of 4,096 tokens), and 1.5 GB",
            "pull or convert it with preset='q4'",
        ),
        (
            1.9e9, 4096, "f32",
            "2.0 GB of memory (1.6 GB for weights, 235 MB for a KV cache of 4,096 tokens), and 1.9 GB",
            "use kv='q8', or use context=2048",
        ),
        (
            2.0e9, 32768, "auto",
            "2.2 GB of memory (1.6 GB for weights, 499 MB for a KV cache of 32,768 tokens), and 2.0 GB",
            "use context=16384, or pull or convert it with preset='q4'",
        ),
        (
            0.65e9, None, "auto",
            "1.8 GB of memory (1.6 GB for weights, 62.4 MB for a KV cache of 4,096 tokens), and 650 MB",
            "take a smaller model, such as qwen2.5:0.5b",
        ),
        (
            0.5e9, None, "auto",
            "1.8 GB of memory (1.6 GB for weights, 62.4 MB for a KV cache of 4,096 tokens), and 500 MB",
            "take a smaller model",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    available: float,
    context: int | None,
    kv: str,
    sizes: str,
    remedy: str,
) -> None:
    warning = f"m-q8 needs {sizes} are free, so each token reads weights from the disk: {remedy}"
    assert check(monkeypatch, folder, available, context, kv) == warning


def test_a_cache_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        check(monkeypatch, folder, 1e9, 32768, "f32")
    assert str(caught.value) == (
        "m-q8 needs 3.6 GB of memory (1.6 GB for weights, 1.9 GB for a KV cache of 32,768 tokens), but only 1.0 GB are "
        "free: take a smaller model, such as qwen2.5:0.5b"
    )


def test_the_command_line_says_it_before_it_loads(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("qwchat.store.memory_check.available_memory", lambda: 1_900_000_000)
    result = call("-p", "hi", "-m", str(folder), "--kv", "f32", models=tmp_path)
    assert result.returncode == 0
    assert result.stderr.decode().splitlines()[0] == (
        "qwchat: m-q8 needs 2.0 GB of memory (1.6 GB for weights, 235 MB for a KV cache of 4,096 tokens), and 1.9 GB "
        "are free, so each token reads weights from the disk: use --kv q8, or use --ctx 2048"
    )
    result = call("-p", "hi", "-m", str(folder), "--kv", "f32", "--ctx", "32768", "-q", models=tmp_path)
    assert result.returncode == 5
    assert b"but only 1.9 GB are free" in result.stderr
    assert result.stdout == b""


def test_a_folder_that_cannot_be_read_is_left_to_the_loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check(monkeypatch, tmp_path, 1) is None
    (tmp_path / "manifest.json").write_text("{}")
    assert check(monkeypatch, tmp_path, 1) is None
    (tmp_path / "config.json").write_text("{")
    assert check(monkeypatch, tmp_path, 1) is None


def test_a_window_that_the_model_does_not_have_is_left_to_the_loader(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    assert check(monkeypatch, folder, 1, 40000) is None
