"""Tokenizer files of a model folder, made of the metadata of a GGUF file.

GGUF stores the tokens with their types, the merges, and the name of the pre-tokenizer. The rest of `tokenizer.json` is
the same in every model of the Qwen family. From llama.cpp's conversion of Qwen2-7B-Instruct, `tokenizer.json` has the
bytes of the published file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quant.errors import CheckpointError
from quant.sources.gguf.tokenizer_vocabulary import AddedToken, GgufTokenizer, read_tokenizer
from quant.tokenizer_file import SIZE_LIMIT, check

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_NEVER_BOS = "<|endoftext|>"


def tokenizer_files(metadata: Mapping[str, object], where: str) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json, generation_config.json and, if present, chat_template.jinja.

    Args:
        metadata: values by key; arrays are lists.
        where: name of the file for messages.

    Raises:
        CheckpointError: the tokenizer is damaged, exceeds a limit, or does not belong to the Qwen family.
    """
    tokenizer = read_tokenizer(metadata, where)
    values = _tokenizer_values(tokenizer)
    check(values, f"{where}: tokenizer", CheckpointError)
    files = {
        "tokenizer.json": _to_json(values),
        "tokenizer_config.json": _to_json(_config_values(tokenizer)),
        "generation_config.json": _to_json(_generation_values(tokenizer)),
    }
    if len(files["tokenizer.json"]) > SIZE_LIMIT:
        raise CheckpointError(f"{where}: the tokenizer takes more than {SIZE_LIMIT:,} bytes; download the file again")
    if tokenizer.template is not None:
        files["chat_template.jinja"] = tokenizer.template.encode()
    return files


def _to_json(values: dict[str, Any]) -> bytes:
    """Return values as JSON, formatted as published files are."""
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def _tokenizer_values(tokenizer: GgufTokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json, in the order of published files."""
    split = {"type": "Split", "pattern": {"Regex": tokenizer.split}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token.token_id,
                "content": token.content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token.special,
            }
            for token in tokenizer.added
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
        "post_processor": _post_processor(tokenizer),
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": tokenizer.vocab,
            "merges": tokenizer.merges,
        },
    }


def _post_processor(tokenizer: GgufTokenizer) -> dict[str, Any]:
    """Return the post-processor, which puts the BOS token before a text if the file says so."""
    bos = tokenizer.content(tokenizer.bos_id)
    if not tokenizer.adds_bos or bos is None:
        return _BYTE_LEVEL
    first, second = (
        [{"SpecialToken": {"id": bos, "type_id": number}}, {"Sequence": {"id": name, "type_id": number}}]
        for number, name in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def _config_values(tokenizer: GgufTokenizer) -> dict[str, Any]:
    """Return the content of tokenizer_config.json.

    The config.json of Qwen2 names `<|endoftext|>` as BOS, and converters copy that, although no prompt begins with it:
    its template gets no BOS token.
    """
    bos = tokenizer.content(tokenizer.bos_id)
    values = {
        "add_bos_token": tokenizer.adds_bos,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token.token_id): _flags(token) for token in tokenizer.added},
        "bos_token": bos if tokenizer.adds_bos or bos != _NEVER_BOS else None,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.content(tokenizer.eos_ids[0]),
        "errors": "replace",
        "model_max_length": tokenizer.context,
        "pad_token": tokenizer.content(tokenizer.padding_id),
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if tokenizer.context is None:
        del values["model_max_length"]
    return values


def _flags(token: AddedToken) -> dict[str, Any]:
    """Return an added token as tokenizer_config.json lists it."""
    strips = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": token.content, **strips, "special": token.special}


def _generation_values(tokenizer: GgufTokenizer) -> dict[str, Any]:
    """Return the content of generation_config.json. Without sampling defaults, replies are greedy."""
    eos: int | list[int] = tokenizer.eos_ids if len(tokenizer.eos_ids) > 1 else tokenizer.eos_ids[0]
    ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.padding_id}
    values = {name: token_id for name, token_id in ids.items() if token_id is not None}
    sampling = tokenizer.sampling
    draws = {"do_sample": sampling.get("temperature", 1) > 0} if sampling else {}
    return {**values, **draws, "eos_token_id": eos, **sampling}
