"""Checkpoints: safetensors headers, shards and their index, config.json, values of weights."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import mutations
from tests.fuzz.base import QUESTION, Base, contents, parsed
from tests.fuzz.case import MODEL, OK, Case, Content, Files, Sparse, command

NAME = "checkpoints"
_INDEX = "model.safetensors.index.json"
Changed = tuple[str, dict[str, Content]]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """Return a safetensors file."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case."""
    source = random.choice((base.checkpoint, base.sharded))
    small = contents(source)
    maker = random.choice((_header, _header, _header, _config, _config, _index, _damage, _damage, _strange, _values))
    title, changed = maker(random, small, source)
    files: Files = {f"source/{each}": content for each, content in changed.items()}
    converting = command("convert", "{case}/source", "{case}/made", "-q", codes=(OK, MODEL))
    commands = [
        random.choice(
            (
                converting,
                converting,
                command("convert", "{case}/source", "{case}/made", "--dry-run", "--json", codes=(OK, MODEL), json=True),
                command(
                    *("convert", "{case}/source", "{case}/made", "--preset", random.choice(("q8", "lin4", "dense"))),
                    codes=(OK, MODEL, 2),
                ),
                command("-p", "hi", "-m", "{case}/source", *QUESTION, codes=(OK, MODEL)),
                command("show", "{case}/source", codes=(OK, MODEL)),
            )
        )
    ]
    return Case(NAME, number, f"{source.name}: {title}", files, tuple(commands), copies=(("source", source),))


def _shard(random: Random, small: dict[str, bytes]) -> str:
    return random.choice([name for name in small if name.endswith(".safetensors")])


def _header(random: Random, small: dict[str, bytes], source: object) -> Changed:
    name = _shard(random, small)
    header, data = split(small[name])
    tensors = [key for key in header if key != "__metadata__"]
    for _ in range(random.choice((1, 1, 2))):
        _spoil(random, header, random.choice(tensors), len(data))
    encoded = mutations.dumps(random, header)
    length = random.choice((None,) * 6 + (0, 1, len(encoded) - 1, len(encoded) + 1, 1 << 27, 1 << 63, (1 << 64) - 1))
    made = join(encoded, data, length)
    if random.random() < 0.03:
        return f"{name} of 8 GB", {name: Sparse(made, 1 << 33)}
    return f"another header of {name}", {name: made}


def _spoil(random: Random, header: dict[str, Any], tensor: str, size: int) -> None:
    entry = header.get(tensor)
    if not isinstance(entry, dict):
        return
    offsets = entry.get("data_offsets")
    start, stop = offsets if isinstance(offsets, list) and len(offsets) == 2 else (0, 0)
    kind = random.randrange(9)
    if kind == 0:
        entry["data_offsets"] = random.choice(
            ([stop, start], [start, stop + 1], [start - 1, stop], [0, size], [start], [start, 1 << 63], [-1, stop], [])
        )
    elif kind == 1:
        entry["shape"] = random.choice(
            ([], [0], [-1], [1 << 62, 4], [1 << 32, 1 << 32], [1] * 100, [size], [1.5], ["8"], None, [True])
        )
    elif kind == 2:
        entry["dtype"] = random.choice(("F64", "I8", "F8_E4M3", "bf16", "BF16 ", "", None, 16, ["F32"], "F16", "F32"))
    elif kind == 3:
        header[mutations.text(random)] = header.pop(tensor)
    elif kind == 4:
        del header[tensor]
    elif kind == 5:
        header[mutations.text(random)] = dict(entry)
    elif kind == 6:
        header["__metadata__"] = mutations.value(random)
    elif kind == 7:
        header[tensor] = mutations.value(random)
    else:
        header.update({f"model.layers.{number}.x": dict(entry) for number in range(random.choice((2, 3_000)))})


def _config(random: Random, small: dict[str, bytes], source: Any) -> Changed:
    return "another config.json", {
        "config.json": mutations.dumps(random, mutations.mutate_json(random, parsed(source, "config.json")))
    }


def _index(random: Random, small: dict[str, bytes], source: Any) -> Changed:
    if _INDEX in small:
        index = json.loads(small[_INDEX])
    else:
        header, _ = split(small["model.safetensors"])
        index = {"weight_map": {name: "model.safetensors" for name in header if name != "__metadata__"}}
    weight_map = index["weight_map"]
    for name in random.sample(sorted(weight_map), 2):
        weight_map[name] = random.choice(
            (
                *("../secret/canary", "/dev/zero", "/etc/passwd", "a" * 5_000, "", ".", "..", "config.json", "\0"),
                *("model-00002-of-00003.safetensors", "model.safetensors", None, 3, ["x"], mutations.text(random)),
                *("CON", "a/b", "a\\b", "\ud800", "\x1b[31m"),
            )
        )
    index = index if random.random() < 0.7 else mutations.mutate_json(random, index)
    return "another index", {_INDEX: mutations.dumps(random, index)}


def _damage(random: Random, small: dict[str, bytes], source: Any) -> Changed:
    name = random.choice(list(small))
    return f"damaged {name}", {name: mutations.mutate_bytes(random, small[name])}


def _strange(random: Random, small: dict[str, bytes], source: Any) -> Changed:
    name = random.choice(list(small))
    content = mutations.strange_file(random, small[name])
    return f"{name} is {type(content).__name__}", {name: content}


def _values(random: Random, small: dict[str, bytes], source: Any) -> Changed:
    """Set weights to NaN, infinity, huge or tiny values."""
    name = _shard(random, small)
    header, data = split(small[name])
    entry = header[random.choice([key for key in header if key != "__metadata__"])]
    start, stop = entry["data_offsets"]
    values = np.frombuffer(data[start:stop], "<u2").copy()
    odd_bits = random.choice((0x7FC0, 0x7F80, 0xFF80, 0x7F7F, 0x0001, 0x8000, 0x7C00, 0x7E00, 0x0080, 0x0000))
    if random.random() < 0.5:
        values[:] = odd_bits
    else:
        values[random.randrange(len(values))] = odd_bits
    changed_data = data[:start] + values.tobytes() + data[stop:]
    return f"odd values in {name}", {name: join(json.dumps(header).encode(), changed_data)}
