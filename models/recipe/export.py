"""Write a training checkpoint as a Hugging Face folder: `python -m models.recipe.export CHECKPOINT [FOLDER]`.

`--mean EARLIER` writes the mean of its weights and those of an earlier checkpoint of the same run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .chatml import END_OF_TEXT, IM_END, IM_START, ChatML
from .recipe import MODEL
from .shape import Shape

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MINI = Shape()
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


def config(shape: Shape, chatml: ChatML) -> dict[str, Any]:
    """Return the values of `config.json`, with every key of a published Qwen2 or Qwen3."""
    own = {} if shape.family == "qwen2" else {"attention_bias": False, "head_dim": shape.head_dim}
    return {
        "architectures": [f"{shape.family.capitalize()}ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": chatml.tokenizer.token_to_id(END_OF_TEXT),
        "eos_token_id": chatml.end,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context,
        "max_window_layers": shape.layers,
        "model_type": shape.family,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "sliding_window": shape.context,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2" if shape.family == "qwen2" else "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
        **own,
    }


def tokenizer_config(shape: Shape, chatml: ChatML) -> dict[str, Any]:
    """Return the values of `tokenizer_config.json`, with the template of Qwen2."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    specials = sorted((chatml.tokenizer.token_to_id(token), token) for token in (END_OF_TEXT, IM_START, IM_END))
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token_id): {"content": token, **flags} for token_id, token in specials},
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": shape.context,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def generation_config(chatml: ChatML) -> dict[str, Any]:
    """Return the values of `generation_config.json`.

    Decoding is greedy, since every question that the model knows has one correct answer.
    """
    end_of_text = chatml.tokenizer.token_to_id(END_OF_TEXT)
    return {
        "bos_token_id": end_of_text,
        "do_sample": False,
        "eos_token_id": [chatml.end, end_of_text],
        "pad_token_id": end_of_text,
        "transformers_version": "4.41.2",
    }


def export(
    checkpoint: Path, folder: Path, earlier: Path | None = None, shape: Shape = MINI, tokenizer: Path = MODEL
) -> int:
    """Write the folder, with the mean of both checkpoints if there is an earlier one.

    Args:
        checkpoint: written by the training of a model of this shape.
        folder: where to; it is made if it does not exist.
        earlier: another checkpoint of the same training.
        shape: sizes of the model.
        tokenizer: folder with the files of the tokenizer.

    Returns:
        The number of tokens that the weights were trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != tokenizer.resolve():
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
    saved = torch.load(checkpoint, weights_only=True)
    exact = saved["model"]
    if earlier is not None:
        other = torch.load(earlier, weights_only=True)["model"]
        exact = {name: 0.5 * other[name] + 0.5 * weight for name, weight in exact.items()}
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in exact.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read it
    chatml = ChatML.load(folder)
    tables = {
        "config.json": config(shape, chatml),
        "tokenizer_config.json": tokenizer_config(shape, chatml),
        "generation_config.json": generation_config(chatml),
    }
    for name, table in tables.items():
        (folder / name).write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(saved["tokens"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--mean", type=Path, metavar="EARLIER", help="checkpoint to take the mean with")
    options = parser.parse_args()
    tokens = export(options.checkpoint, options.folder, options.mean)
    print(f"{options.folder}: trained on {tokens} tokens")


if __name__ == "__main__":
    main()
