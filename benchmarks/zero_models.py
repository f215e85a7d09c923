"""Model folders of any shape whose weights are zero, made in a moment and without a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.make_checkpoint import TOKENIZER_FILES
from quant.families import expected_tensors, parse_config
from quant.policy import conversion_spec
from quant.writer import ModelWriter
from qwchat.store.memory_estimate import planned_tensors


def make_zero_model(values: Mapping[str, Any], preset: str, tokenizer: Path, destination: Path) -> Path:
    """Make a model folder for measurements of memory, and return it. The checksums of its tensors are wrong.

    The disk reserves the space of the weights, but hardly any byte of them is written.

    Args:
        values: values of config.json.
        preset: formats of the tensors.
        tokenizer: folder with the tokenizer's files.
        destination: folder to make.

    Raises:
        QuantError: the values do not describe a model, or the disk is full.
    """
    config = parse_config(values)
    shapes, tensors = expected_tensors(config), planned_tensors(config, preset)
    plans = [
        (name, tensor.format, shapes[name], tensor.group_size, "zeros" in tensor.layout)
        for name, tensor in tensors.items()
    ]
    files = {name: (tokenizer / name).read_bytes() for name in TOKENIZER_FILES if (tokenizer / name).is_file()}
    header = {
        "producer": {"name": "qwchat", "version": "unknown"},
        "source": {"name": "zeros", "fingerprint": "zeros", "bytes": 0},
        "settings": {"preset": preset, "group_size": conversion_spec(preset).group_size},
    }
    with ModelWriter(destination, plans, header, {**files, "config.json": json.dumps(dict(values)).encode()}) as writer:
        writer.begin(resume=False)
        for name, tensor in tensors.items():
            writer.write(
                name, {part: np.zeros((1, *shape[1:]), dtype) for part, (dtype, shape) in tensor.layout.items()}, 0
            )
            writer.finish(name, 0.0)
        writer.complete()
        writer.publish(force=False)
    return destination
