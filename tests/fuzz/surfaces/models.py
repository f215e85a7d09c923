"""Model folders: manifest, config, weights and small files."""

from __future__ import annotations

import json
from random import Random

from tests.fuzz import mutations
from tests.fuzz.base import QUESTION, Base, contents, manifest_with, parsed
from tests.fuzz.case import MODEL, OK, TOO_LONG, Case, Command, Content, Files, Link, Sparse, command

NAME = "models"
_JSON = ("manifest.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_CONFIG_KEYS = (
    *("rope_theta", "rms_norm_eps", "max_position_embeddings", "hidden_size", "head_dim", "num_hidden_layers"),
    *("vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "bos_token_id", "eos_token_id"),
    *("rope_scaling", "rope_parameters", "layer_types", "sliding_window", "tie_word_embeddings", "dtype"),
)
_YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale", "type")


def ask_model(*, damaged: bool) -> Command:
    """Return a command that sends a prompt to the model; with `damaged` weights, it must fail."""
    # A context window of a few tokens is valid, but no prompt fits into it.
    codes = (MODEL,) if damaged else (OK, MODEL, TOO_LONG)
    return command("-p", "hi there", "-m", "{case}/model", *QUESTION, "--json", codes=codes, json=True)


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case."""
    small = contents(base.model)
    name, changed = random.choice(
        (_changed_json, _changed_json, _changed_json, _config, _config, _config, _damage, _damage, _strange, _weights)
    )(random, small, base)
    files: Files = {f"model/{each}": content for each, content in changed.items()}
    weights = changed.get("weights.bin", b"")
    damaged = isinstance(weights, bytes) and "weights.bin" in changed and weights != small["weights.bin"]
    first = ask_model(damaged=damaged)
    if random.random() < 0.3:
        files |= {f"models/some/{each}": content for each, content in small.items()}
        files |= {f"models/other/{each}": content for each, content in changed.items()}
        first = command("list", "--json", codes=(OK,), json=True)
    shown = command("show", "{case}/model", codes=(OK, MODEL))
    commands = (first,) if random.random() < 0.6 else (first, shown)
    return Case(NAME, number, name, files, commands, copies=(("model", base.model),))


Changed = tuple[str, dict[str, Content]]


def _changed_json(random: Random, small: dict[str, bytes], base: Base) -> Changed:
    name = random.choice((*_JSON[:2], *_JSON))
    return f"another {name}", {name: mutations.dumps(random, mutations.mutate_json(random, parsed(base.model, name)))}


def _config(random: Random, small: dict[str, bytes], base: Base) -> Changed:
    """Change numbers of config.json, with a correct checksum in the manifest."""
    config = parsed(base.model, "config.json")
    for key in random.sample(_CONFIG_KEYS, random.choice((1, 1, 2, 5))):
        config[key] = mutations.value(random) if random.random() < 0.5 else random.choice(mutations.NUMBERS)
    if random.random() < 0.4:
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
        for key in random.sample(_YARN, random.choice((1, 2, 4))):
            scaling[key] = random.choice(mutations.NUMBERS)
        config[random.choice(("rope_scaling", "rope_parameters"))] = scaling
    data = json.dumps(config).encode()
    return "another config.json", {
        "config.json": data,
        "manifest.json": manifest_with(parsed(base.model, "manifest.json"), {"config.json": data}),
    }


def _damage(random: Random, small: dict[str, bytes], base: Base) -> Changed:
    name = random.choice((*small, "weights.bin", "weights.bin", "manifest.json"))
    return f"damaged {name}", {name: mutations.mutate_bytes(random, small[name])}


def _strange(random: Random, small: dict[str, bytes], base: Base) -> Changed:
    name = random.choice(list(small))
    content = Link(name) if random.random() < 0.1 else mutations.strange_file(random, small[name])
    return f"{name} is {type(content).__name__}", {name: content}


def _weights(random: Random, small: dict[str, bytes], base: Base) -> Changed:
    """Change the size of the weights together with the manifest, or the ranges in the manifest."""
    manifest = parsed(base.model, "manifest.json")
    size = random.choice((0, 1, 64, 1 << 20, 1 << 33, 1 << 40, len(small["weights.bin"]) - 64))
    if random.random() < 0.5:
        manifest["weights"]["bytes"] = size
        return "weights of another size", {
            "manifest.json": json.dumps(manifest).encode(),
            "weights.bin": Sparse(small["weights.bin"], size),
        }
    for tensor in random.sample(list(manifest["tensors"].values()), 2):
        part = random.choice(list(tensor["parts"].values()))
        part[random.choice(("offset", "nbytes", "shape", "dtype"))] = random.choice(
            (0, -64, 64, 1 << 40, 1 << 62, [1 << 30, 1 << 30], [0], [], "float64", "object", 64.0, True)
        )
    return "another place of weights", {"manifest.json": json.dumps(manifest).encode()}
