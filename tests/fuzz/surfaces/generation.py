"""Numbers, types and sizes in generation_config.json."""

from __future__ import annotations

import json
from random import Random

from tests.fuzz import mutations
from tests.fuzz.base import QUESTION, Base, contents, manifest_with, parsed
from tests.fuzz.case import MODEL, OK, Case, Content, Files, Sparse, command

NAME = "generation"
_FILE = "generation_config.json"
_KEYS = (
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eos_token_id", "bos_token_id"),
    *("pad_token_id", "max_new_tokens", "max_length", "stop_strings", "presence_penalty", "transformers_version"),
)


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case. The checksum in the manifest is correct, so that the contents are read."""
    values = parsed(base.model, _FILE)
    kind = random.randrange(10)
    content: Content
    if kind < 6:
        for key in random.sample(_KEYS, random.choice((1, 1, 2, 4))):
            values[key] = random.choice(
                (
                    mutations.value(random),
                    random.choice(mutations.NUMBERS),
                    [random.choice(mutations.NUMBERS)] * random.choice((1, 9)),
                )
            )
        content = json.dumps(values).encode()
    elif kind < 8:
        content = mutations.dumps(random, mutations.mutate_json(random, values))
    elif kind == 8:
        content = mutations.mutate_bytes(random, contents(base.model)[_FILE])
    else:
        content = mutations.strange_file(random, contents(base.model)[_FILE])
    if random.random() < 0.01:
        content = Sparse(json.dumps(values).encode(), 40 << 30)
    files: Files = {f"model/{_FILE}": content}
    if isinstance(content, bytes):
        files["model/manifest.json"] = manifest_with(parsed(base.model, "manifest.json"), {_FILE: content})
    # Without settings on the command line, those of the file apply.
    flags = QUESTION if random.random() < 0.3 else ("--max-tokens", "3", "--seed", "1")
    asked = command("-p", "hi", "-m", "{case}/model", *flags, "--json", codes=(OK, MODEL), json=True)
    return Case(NAME, number, type(content).__name__, files, (asked,), copies=(("model", base.model),))
