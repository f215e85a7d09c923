"""Compare a converted model with its source, which runs layer by layer without quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quant.container import ModelFolder
from quant.families import expected_tensors
from quant.quality import MAX_DIVERGENCE, Quality
from qwchat.calibration.source_tensors import SourceTensors
from qwchat.calibration.streamed_model import Head, Residual, open_head, open_layer
from qwchat.cpu.decoder import CpuDecoder
from qwchat.cpu.kv_cache import KVCache
from qwchat.cpu.memory import require_memory
from qwchat.errors import NonFiniteLogitsError
from qwchat.evaluation.check_texts import EncodedTexts
from qwchat.evaluation.comparison import Scores, join, score

if TYPE_CHECKING:
    from quant.sources import Source

Progress = Callable[[int, int], None]
"""Called with the steps that are done and their number."""
TokenIds = NDArray[np.int64]
_LOGIT_COPIES = 8  # Arrays of (chunk, vocab) numbers while the tokens of a chunk are scored.
_DIGITS = 4  # Significant digits of a stored figure: the last ones depend on the processor.


def compare_with_source(
    source: Source, folder: ModelFolder, texts: EncodedTexts, *, threads: int, progress: Progress
) -> Scores:
    """Return the scores of a converted model on some texts, with its source as the reference.

    At most one layer, or the head, of the source is in memory at a time.

    Args:
        source: the open checkpoint.
        folder: the converted model.
        texts: what is predicted.
        threads: threads that compute.
        progress: called after each layer.

    Raises:
        ModelError: the kernels cannot run the model.
        NotEnoughMemoryError: there is not enough memory.
        NonFiniteLogitsError: a model computed NaN or infinity.
    """
    require_memory(_needed_memory(source, texts), "comparing the model with its source", "close other programs")
    context = max(map(len, texts.ids))
    steps = source.config.num_layers + 2
    model = CpuDecoder(folder, context=context, threads=threads, kv="f32")
    try:
        cache = model.make_cache()
        own = [_run_model(model, cache, ids) for ids in texts.ids]
        progress(1, steps)
        tensors = SourceTensors(source, threads)
        reference = run_source(tensors, texts.ids, threads=threads, progress=lambda done: progress(1 + done, steps))
        with open_head(tensors, threads=threads) as head:
            parts = [
                _score_text(model, head, *each, texts.vocab_size)
                for each in zip(own, reference, texts.ids, strict=True)
            ]
        progress(steps, steps)
    finally:
        model.close()
    return join(parts)


def run_source(
    tensors: SourceTensors, texts: Sequence[TokenIds], *, threads: int, progress: Callable[[int], None]
) -> list[Residual]:
    """Return the residual stream of each text after the last layer, (tokens, hidden) f32."""
    residuals = [tensors.embed(ids) for ids in texts]
    context = max(map(len, texts))
    for layer in range(tensors.config.num_layers):
        with open_layer(tensors, layer, context=context, threads=threads) as run:
            for residual in residuals:
                run(residual)
        progress(layer + 1)
    return residuals


def summarise_scores(scores: Scores, text: str) -> Quality:
    """Return the figures of a comparison for the manifest."""
    divergence = scores.divergence
    return Quality(
        kl_mean=_rounded(min(float(divergence.mean()), MAX_DIVERGENCE)),
        kl_p999=_rounded(min(float(np.quantile(divergence, 0.999)), MAX_DIVERGENCE)),
        same_top=_rounded(float(scores.same_top.mean())),
        tokens=len(divergence),
        text=text,
    )


def _needed_memory(source: Source, texts: EncodedTexts) -> int:
    """Return the bytes of a comparison beside the mapped weights of the converted model."""
    config = source.config
    width = {name: 2 if info.dtype == "bf16" else 4 for name, info in source.tensors.items()}
    sizes = {name: width[name] * math.prod(shape) for name, shape in expected_tensors(config).items()}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    head = sizes.get("lm_head.weight", sizes["model.embed_tokens.weight"])
    residuals = 2 * 4 * config.hidden_size * sum(map(len, texts.ids))
    return max(layer, head) + residuals + _LOGIT_COPIES * 4 * config.vocab_size * CpuDecoder.chunk


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _run_model(model: CpuDecoder, cache: KVCache, ids: TokenIds) -> Residual:
    """Return the residual stream of a text after the last layer, (tokens, hidden) f32."""
    parts = []
    for start in range(0, len(ids), model.chunk):
        residual = model.embed(ids[start : start + model.chunk])
        model.run_layers(residual, 0, model.config.num_layers, start, cache)
        parts.append(residual)
    return np.concatenate(parts)


def _score_text(
    model: CpuDecoder, reference_head: Head, own: Residual, reference: Residual, ids: TokenIds, vocab_size: int
) -> Scores:
    """Score all tokens of a text but the first, from the residual streams of both models."""
    parts = []
    for start in range(0, len(ids) - 1, model.chunk):
        stop = min(start + model.chunk, len(ids) - 1)
        logits, expected = model.head(own[start:stop], 0), reference_head(reference[start:stop])
        if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
            raise NonFiniteLogitsError("the model computed NaN or infinity: check the weights of the checkpoint")
        parts.append(score(logits[:, :vocab_size], ids[start + 1 : stop + 1], expected[:, :vocab_size]))
    return join(parts)
