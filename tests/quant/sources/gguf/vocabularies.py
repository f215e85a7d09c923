"""Metadata of tokenizers, as llama.cpp's conversion writes them, and the added tokens of published models."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.text.thinking_templates import R1_TOKENS

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_VISION = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
_VISION = (*_VISION, "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
_CODE = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
_QWEN25 = (
    *((f"<|{name}|>", True) for name in ("endoftext", "im_start", "im_end", *_VISION)),
    *(("<tool_call>", False), ("</tool_call>", False)),
    *((f"<|{name}|>", False) for name in _CODE),
)
ADDED: dict[str, tuple[tuple[str, bool], ...]] = {
    "qwen2": _QWEN25[:3],
    "qwen2.5": _QWEN25,
    "qwen3": (
        *_QWEN25,
        *((token, False) for token in ("<tool_response>", "</tool_response>", "<think>", "</think>")),
    ),
    "r1": (*((token, "sentence" in token) for token in R1_TOKENS), *_QWEN25[len(R1_TOKENS) :]),
}
"""Added tokens of published models from the id 151643 on, and whether their tokenizer.json calls them special."""


def published_values(base: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the tokenizer.json of a model: `base` with the added tokens of `ADDED` after its vocabulary."""
    values = deepcopy(base)
    first = len(values["model"]["vocab"])
    values["added_tokens"] = [
        {"id": first + number, "content": token, **FLAGS, "special": special}
        for number, (token, special) in enumerate(ADDED[model])
    ]
    if model == "r1":
        bos = R1_TOKENS[3]
        pieces = [
            [{"SpecialToken": {"id": bos, "type_id": number}}, {"Sequence": {"id": name, "type_id": number}}]
            for number, name in enumerate("AB")
        ]
        values["post_processor"] = {
            "type": "TemplateProcessing",
            "single": pieces[0],
            "pair": [*pieces[0], *pieces[1]],
            "special_tokens": {bos: {"id": bos, "ids": [first + 3], "tokens": [bos]}},
        }
    return values


def tokenizer_metadata(values: dict[str, Any], rows: int, **others: Any) -> dict[str, Any]:
    """Return the metadata of a tokenizer.json for a model of `rows` logits; `others` are further `tokenizer.ggml` keys.

    llama.cpp calls every added token with the form of a control token one, special or not.
    """
    tokens, types = [f"[PAD{token_id}]" for token_id in range(rows)], [5] * rows
    for token, token_id in values["model"]["vocab"].items():
        tokens[token_id], types[token_id] = token, 1
    for added in values["added_tokens"]:
        content = added["content"]
        looks_special = (content[:2], content[-2:]) in (("<|", "|>"), ("<｜", "｜>"))
        tokens[added["id"]], types[added["id"]] = content, 3 if added["special"] or looks_special else 4
    first = len(values["model"]["vocab"])
    given = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "token_type": types}
    given |= {"merges": list(values["model"]["merges"]), "eos_token_id": first + 2, "bos_token_id": first}
    return {f"tokenizer.ggml.{key}": value for key, value in {**given, **others}.items() if value is not None}


def r1_metadata(base: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the metadata of a model of DeepSeek-R1 with the vocabulary of `base`."""
    first = len(base["model"]["vocab"])
    ids = {"eos_token_id": first, "bos_token_id": first + 3, "padding_token_id": first}
    return tokenizer_metadata(published_values(base, "r1"), rows, pre="deepseek-r1-qwen", add_bos_token=True, **ids)
