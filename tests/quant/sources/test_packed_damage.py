"""Damaged and hostile packed checkpoints: each is read, or refused in one line, within twice the memory of its file."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.errors import CheckpointError
from quant.safe_files import read_bounded
from quant.sources import QuantisedRows, check_tensors, open_source
from tests.fuzz import mutations
from tests.quant.checkpoints import CONFIG, encode, write_json, write_safetensors
from tests.quant.sources.packing import FORMS, Entries, integers, make_packed
from tests.tiers import count

TINY = {**CONFIG, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "vocab_size": 40}
OVERHEAD = 1 << 20
"""Bytes that parsed JSON and one block of rows may take, whatever the size of the file."""
MAIN = ("gptq-v1-int4", "awq", "w4a16-asym", "w8a16-channel")
VARIANTS = ("gptq-v2-int8", "gptq-v1-int4-sym", "w4a16")


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit of small files: their reader asks for as many bytes, and the system gives only those it fills."""
    monkeypatch.setattr("quant.sources.huggingface.read_bounded", partial(read_bounded, max_bytes=OVERHEAD // 2))


def load(folder: Path) -> int:
    """Read everything that a conversion reads. Return the number of tensors."""
    with open_source(folder) as source:
        check_tensors(source)
        assert source.notices is not None
        assert json.loads(source.files["config.json"])
        for name, info in source.tensors.items():
            rows = source.read(name)
            values = rows.dequantise() if isinstance(rows, QuantisedRows) else rows
            assert values.shape == info.shape
            assert values.dtype == np.float32
            source.release(name, 0, info.shape[0])
        return len(source.tensors)


def mutate_entries(dice: random.Random, entries: Entries) -> None:
    """Change names, types, shapes and contents, so that the header still fits the data."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        name, other = dice.choice(list(entries)), dice.choice(list(entries))
        kind, shape, data = entries[name]
        change = dice.randrange(7)
        if change == 0:
            del entries[name]
        elif change == 1:
            entries[dice.choice((name + "_", other.rpartition(".")[0] + "." + name.rpartition(".")[2]))] = entries[name]
        elif change == 2:
            entries[name], entries[other] = entries[other], entries[name]
        elif change == 3:
            kinds = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8, "U8": 1}
            new = dice.choice(list(kinds))
            items, rest = divmod(len(data), kinds[new])
            if not rest:
                entries[name] = (new, shape if math.prod(shape) == items else (items,), data)
        elif change == 4:
            entries[name] = (kind, dice.choice((shape[::-1], (math.prod(shape),), (*shape, 1), (1, *shape))), data)
        elif change == 5:
            entries[name] = (kind, shape, mutations.mutate_bytes(dice, data)[: len(data)].ljust(len(data), b"\xff"))
        else:
            cut = max(1, shape[0] // 2)
            entries[name] = (kind, (cut, *shape[1:]), data[: len(data) // shape[0] * cut])


def mutants(dice: random.Random, folder: Path, entries: Entries, rounds: int) -> Iterator[None]:
    """Write changed files again and again: one of config.json, header, whole file or single tensors."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    original, values = weights.read_bytes(), config.read_bytes()
    length = int.from_bytes(original[:8], "little")
    for _ in range(rounds):
        files = {weights: original, config: values}
        change = dice.randrange(6)
        if change == 0:
            header = mutations.dumps(dice, mutations.mutate_json(dice, json.loads(original[8 : 8 + length])))
            files[weights] = len(header).to_bytes(8, "little") + header + original[8 + length :]
        elif change == 1:
            files[weights] = mutations.mutate_bytes(dice, original)
        elif change == 2:
            files[config] = mutations.dumps(dice, mutations.mutate_json(dice, json.loads(values)))
        elif change == 3:
            tree: Any = json.loads(values)
            tree["quantization_config"] = mutations.mutate_json(dice, tree["quantization_config"])
            files[config] = mutations.dumps(dice, tree)
        for file, data in files.items():
            file.unlink()  # some file systems wait for the disk if a file is overwritten
            file.write_bytes(data)
        if change > 3:
            changed = dict(entries)
            mutate_entries(dice, changed)
            weights.unlink()
            write_safetensors(weights, changed)
        yield


@pytest.mark.parametrize(
    ("name", "rounds"),
    [*((name, count(2000, 40)) for name in MAIN), *((name, count(300, 20)) for name in VARIANTS)],
)
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path: Path, name: str, rounds: int) -> None:
    form = next(form for form in FORMS if form.name == name)
    entries: Entries = {}
    make_packed(tmp_path, form, config=TINY, edit=entries.update)
    assert load(tmp_path) == 15
    messages: list[str] = []
    tracemalloc.start()
    try:
        for _ in mutants(random.Random(name), tmp_path, entries, rounds):
            size = sum(file.stat().st_size for file in tmp_path.iterdir())
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            try:
                load(tmp_path)
            except CheckpointError as error:
                messages.append(str(error))
            assert tracemalloc.get_traced_memory()[1] - before < 2 * size + OVERHEAD
    finally:
        tracemalloc.stop()
    assert rounds / 4 < len(messages) < rounds
    assert [message for message in messages if not message.isprintable() or len(message) > 700] == []


def huge(part: str, shape: tuple[int, ...], kind: str = "I32") -> Entries:
    """Return a module whose tensor `part` makes up nearly all of the file."""
    form = next(form for form in FORMS if form.name == ("w4a16-asym" if part.startswith("weight") else "gptq-v1-int4"))
    entries = form.pack("m", form.grid(np.random.default_rng(1), (32, 64)))
    entries[f"m.{part}"] = integers(np.full(shape, -1), kind) if kind[0] == "I" else encode(np.ones(shape), "bf16")
    return entries


@pytest.mark.parametrize(
    "entries",
    [
        lambda: huge("qzeros", (2, 1 << 20)),
        lambda: huge("qzeros", (1 << 20, 4)),
        lambda: huge("g_idx", (1 << 21,)),
        lambda: huge("scales", (2, 1 << 21), "BF16"),
        lambda: huge("bias", (1 << 22,), "BF16"),
        lambda: huge("weight_shape", (1 << 20,), "I64"),
        lambda: huge("weight_scale", (32, 1 << 17), "BF16"),
        lambda: huge("weight_zero_point", (4, 1 << 19)),
        lambda: huge("weight_packed", (1 << 21, 1)),
    ],
)
def test_large_tensors_in_the_wrong_place_cost_little_memory(tmp_path: Path, entries: Any) -> None:
    made = entries()
    form = FORMS[0] if "m.qweight" in made else next(form for form in FORMS if form.name == "w4a16-asym")
    write_json(tmp_path / "config.json", {**TINY, "quantization_config": form.config})
    (tmp_path / "tokenizer.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", made)
    size = (tmp_path / "model.safetensors").stat().st_size
    del made
    assert size > 8 << 20
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["gptq-v1-int4", "w4a16"])
def test_checks_of_large_tensors_take_little_memory(tmp_path: Path, form: str) -> None:
    """Zero points and scales that make up nearly all of a file are checked in blocks."""
    made = next(each for each in FORMS if each.name == form)
    grid = made.grid(np.random.default_rng(1), (1 << 16, 32))
    write_json(tmp_path / "config.json", {"quantization_config": made.config})
    write_safetensors(tmp_path / "model.safetensors", made.pack("m", grid))
    del grid
    size = (tmp_path / "model.safetensors").stat().st_size
    tracemalloc.start()
    try:
        with open_source(tmp_path) as source:
            assert source.tensors["m.weight"].home == "lin4"
        assert tracemalloc.get_traced_memory()[1] < size + OVERHEAD
    finally:
        tracemalloc.stop()
