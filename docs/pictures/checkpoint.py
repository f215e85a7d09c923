"""A checkpoint in the shape of Qwen2-0.5B with random weights, for pictures that show no replies."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.make_checkpoint import TOKENIZER_FILES, make_checkpoint
from docs.pictures.terminal import Terminal
from qwchat.models_folder import embedded_checkpoint

NAME = "qwen2-0.5b-instruct"
CONFIG = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def make(home: Path) -> None:
    """Write the checkpoint into `home`, unless it is there, and remove its conversions.

    Its tokenizer is that of the embedded model.
    """
    folder = home / NAME
    if not folder.exists():
        make_checkpoint(CONFIG, folder)
        for name in TOKENIZER_FILES:
            if (file := embedded_checkpoint() / name).is_file():
                shutil.copyfile(file, folder / name)
    for converted in (home / "models").glob(f"*{NAME}*"):
        shutil.rmtree(converted) if converted.is_dir() else converted.unlink()


def make_converted(home: Path) -> None:
    """Write the checkpoint into `home`, and convert it."""
    make(home)
    with Terminal(["qwchat", "convert", "-q", NAME], home, rows=24, columns=80) as terminal:
        terminal.end()
