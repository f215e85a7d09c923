"""GGUF files: header, metadata, tensors and weights, whole and split."""

from __future__ import annotations

from random import Random

from tests.fuzz import mutations
from tests.fuzz.base import Base
from tests.fuzz.case import MODEL, OK, Case, Content, Files, Sparse, command
from tests.quant.sources.gguf.models import split_files
from tests.quant.sources.gguf.mutations import Parts, mutate

NAME = "gguf"
_FILE = "model.gguf"


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case."""
    parts = Parts.of_file(base.gguf / _FILE)
    maker = random.choice((_changed, _changed, _changed, _changed, _strange, _split))
    title, contents = maker(random, parts)
    files: Files = {f"source/{name}": content for name, content in contents.items()}
    given = random.choice(("{case}/source", f"{{case}}/source/{next(iter(contents))}"))
    commands = (
        command("convert", given, "{case}/made", "-q", codes=(OK, MODEL)),
        command("convert", given, "{case}/made", "--dry-run", "--json", codes=(OK, MODEL), json=True),
        command("convert", given, "{case}/made", "--preset", random.choice(("q8", "lin4", "dense")), codes=(OK, MODEL)),
        command("show", given, codes=(OK, MODEL)),
    )
    return Case(NAME, number, title, files, (random.choice(commands),))


Changed = tuple[str, dict[str, Content]]


def _changed(random: Random, parts: Parts) -> Changed:
    title, data = mutate(random, parts)
    if random.random() < 0.03:
        return f"{title}, 8 GB", {_FILE: Sparse(data, 1 << 33)}
    return title, {_FILE: data}


def _strange(random: Random, parts: Parts) -> Changed:
    content = mutations.strange_file(random, parts.data())
    return f"{_FILE} is {type(content).__name__}", {_FILE: content}


def _split(random: Random, parts: Parts) -> Changed:
    """Split the file, damage a part, and leave out, repeat or rename parts."""
    files = split_files(dict(parts.metadata), dict(parts.tensors), random.choice((1, 2, 3)))
    names = list(files)
    for _ in range(random.choice((0, 1, 2))):
        files[random.choice(names)] = mutations.mutate_bytes(random, files[random.choice(names)])
    if random.random() < 0.3:
        del files[random.choice(names)]
    if random.random() < 0.2 or not files:
        files[random.choice(("x-00001-of-99999.gguf", "x-00000-of-00001.gguf", "model-00009-of-00009.gguf"))] = b"GGUF"
    return "split", dict(files)
