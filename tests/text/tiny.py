"""Small tokenizer with the Qwen2 pipeline: all bytes, a few merges, three control tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quant.tokenizer_file import BYTE_OF

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ã ©", "< |", "| >", "u s", "e r", "us er")


def tokenizer_values() -> dict[str, Any]:
    """Return the parsed content of the file. Tests change it."""
    tokens = [*BYTE_OF, *(merge.replace(" ", "") for merge in MERGES)]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pretokenizers = [
        {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(vocab) + n, "content": text, **flags} for n, text in enumerate(CONTROL)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pretokenizers},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": list(MERGES)},
    }


def write_tokenizer(folder: Path, values: Any = None) -> Path:
    """Write `tokenizer.json` into the folder and return the folder."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_values() if values is None else values))
    return folder
