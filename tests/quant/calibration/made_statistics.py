"""Statistics files with made-up moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.calibration import StatisticsHeader, StatisticsWriter, block_sizes, input_columns
from quant.sources import open_source


def random_moments(columns: int, seed: int, samples: int = 512) -> list[NDArray[np.float32]]:
    """Return the blocks of an input whose columns are correlated and of different sizes."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((samples, columns)) @ (np.eye(columns) + random.standard_normal((columns, columns)) / 20)
    x *= np.exp(random.standard_normal(columns))
    blocks, start = [], 0
    for size in block_sizes(columns):
        part = x[:, start : start + size]
        blocks.append((part.T @ part / samples).astype(np.float32))
        start += size
    return blocks


def write_statistics(path: Path, source: Path, seed: int = 0, samples: int = 512) -> Path:
    """Write a statistics file for the checkpoint `source`; return its path."""
    with open_source(source) as opened:
        columns = input_columns(opened.config)
        header = StatisticsHeader(opened.fingerprint, samples, "made up", "0" * 64, columns)
    with StatisticsWriter(path) as writer:
        writer.open_folder(resume=False)
        writer.begin(header)
        for number, (name, count) in enumerate(columns.items()):
            writer.write(name, random_moments(count, seed + number, samples))
        writer.publish(force=True)
    return path
