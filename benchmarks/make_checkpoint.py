"""Write a bf16 checkpoint with random weights in any Qwen2 shape, in the files that Hugging Face would have.

    python -m benchmarks.make_checkpoint qwen2-7b-instruct DEST
    python -m benchmarks.make_checkpoint path/to/config.json DEST

A name is looked up in `shapes.json` of the folder given by --published (default: `shared/qwen2` beside the checkout).
Tensor names, shapes, order, shard boundaries and tokenizer are those of the real model; only the weights are random.
They come from one block of normal draws that is written repeatedly from different offsets, so that writing 15 GB takes
no longer than the disk does. Key biases are as large as the real ones: norm 600 in the first layer, 900 in the last,
about 20 in between.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quant.families import expected_tensors, parse_config
from quant.model_config import ModelConfig

SHARD_BYTES = 4_000_000_000
BLOCK_ELEMENTS = (1 << 22) + 9  # odd, so that rows of a power-of-two width differ
WEIGHT_STD = 0.02
FIRST_KEY_BIAS_NORM, LAST_KEY_BIAS_NORM, KEY_BIAS_NORM = 600.0, 900.0, 20.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json")
PUBLISHED = Path(__file__).resolve().parent.parent.parent / "shared" / "qwen2"

Shapes = dict[str, tuple[int, ...]]


def module_order(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return tensor names in the order in which transformers walks the model: attention, MLP, then a layer's norms."""
    within = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down", "input", "")

    def key(name: str) -> tuple[int, int, int, bool]:
        if not name.startswith("model.layers."):
            return (0 if "embed" in name else 2 if name == "model.norm.weight" else 3, 0, 0, False)
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        place = next(index for index, prefix in enumerate(within) if rest.startswith(prefix))
        return (1, int(layer), place, rest.endswith("bias"))

    return sorted(shapes, key=key)


def plan_shards(shapes: Shapes, shard_bytes: int = SHARD_BYTES) -> dict[str, list[str]]:
    """Return the tensor names of each file, split greedily at `shard_bytes` of data as Hugging Face does."""
    shards: list[list[str]] = [[]]
    used = 0
    for name in module_order(shapes):
        size = 2 * math.prod(shapes[name])
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards)}


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of the nearest bf16, ties to even (finite values only)."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Draws:
    """Random values of each tensor, reproducible by `seed`."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.last_layer = config.num_layers - 1
        self.random = np.random.default_rng(seed)
        self.block = to_bfloat16(self.random.standard_normal(BLOCK_ELEMENTS, dtype=np.float32) * WEIGHT_STD)

    def chunks(self, name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint16]]:
        """Yield the bf16 bits of a tensor in pieces of at most one block."""
        if len(shape) == 1:
            yield to_bfloat16(self._vector(name, shape[0]))
            return
        left = math.prod(shape)
        while left:
            start = int(self.random.integers(BLOCK_ELEMENTS // 2))
            piece = self.block[start : start + left]
            left -= piece.size
            yield piece

    def _vector(self, name: str, size: int) -> NDArray[np.float32]:
        draws = self.random.standard_normal(size, dtype=np.float32)
        if name.endswith("norm.weight"):
            return 1 + np.float32(0.1) * draws
        if not name.endswith("k_proj.bias"):
            return draws * np.float32(0.1)
        layer = int(name.split(".")[2])
        norm = {0: FIRST_KEY_BIAS_NORM, self.last_layer: LAST_KEY_BIAS_NORM}.get(layer, KEY_BIAS_NORM)
        return (draws * (norm / np.linalg.norm(draws))).astype(np.float32)


def write_shard(file: BinaryIO, names: list[str], shapes: Shapes, draws: Draws) -> None:
    """Write one safetensors file: header length, JSON header padded to 8 bytes, data in the order of `names`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + 2 * math.prod(shapes[name])
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for chunk in draws.chunks(name, shapes[name]):
            file.write(memoryview(chunk).cast("B"))


def make_checkpoint(
    values: Mapping[str, Any], destination: Path, *, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write config, index and weights to the new folder `destination` and return it.

    Args:
        values: values of config.json.
        destination: folder, which must not exist.
        seed: seed of the weights.
        shard_bytes: most bytes of data in one file.

    Raises:
        FileExistsError: the folder exists.
        QuantError: the config does not describe a Qwen2 model.
    """
    config = parse_config(values)
    shapes = expected_tensors(config)
    shards = plan_shards(shapes, shard_bytes)
    draws = Draws(config, seed)
    destination.mkdir(parents=True)
    (destination / "config.json").write_text(json.dumps(dict(values), indent=2) + "\n")
    for file_name, names in shards.items():
        with (destination / file_name).open("wb") as file:
            write_shard(file, names, shapes, draws)
    if len(shards) > 1:
        weight_map = {name: file_name for file_name, names in shards.items() for name in names}
        total_size = sum(2 * math.prod(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (destination / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return destination


def read_config(shape: str, published: Path) -> dict[str, Any]:
    """Return the values of a config.json, or of a model named in `shapes.json`. Raises SystemExit otherwise."""
    if Path(shape).is_file():
        values: dict[str, Any] = json.loads(Path(shape).read_text())
        return values
    names: dict[str, dict[str, Any]] = json.loads((published / "shapes.json").read_text())
    if shape not in names:
        raise SystemExit(f"no shape {shape!r}: give a config.json or one of {', '.join(names)}")
    return names[shape]


def copy_tokenizer(published: Path, destination: Path) -> None:
    """Copy the published tokenizer and generation files of Qwen2-7B-Instruct that exist to `destination`."""
    for name in TOKENIZER_FILES:
        if (source := published / "7b-instruct" / name).is_file():
            shutil.copyfile(source, destination / name)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="write a random-weight bf16 checkpoint")
    parser.add_argument("shape", help="a name in shapes.json, or a config.json")
    parser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder of shapes.json and 7b-instruct/")
    options = parser.parse_args()
    started = time.perf_counter()
    folder = make_checkpoint(read_config(options.shape, options.published), options.destination, seed=options.seed)
    copy_tokenizer(options.published, folder)
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e9:.2f} GB in {seconds:.1f} s", file=sys.stderr)
    print(json.dumps({"path": str(folder), "bytes": size, "seconds": round(seconds, 2), "seed": options.seed}))


if __name__ == "__main__":
    main()
