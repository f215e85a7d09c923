"""One matrix quantised at a time: the divergence of a whole model in which only that matrix is rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from quant.families import expected_tensors
from quant.formats import dequantise
from quant.quantisers import quantise
from quant.sources import Source, open_source
from qwchat.calibration.source_tensors import SourceTensors
from qwchat.errors import NonFiniteLogitsError, UsageError
from qwchat.evaluation.check_texts import EncodedTexts, text_windows
from qwchat.evaluation.matrix_divergence import MatrixDivergence, layer_passes, plan_steps
from qwchat.model.reference import Reference
from tests.quant.checkpoints import make_checkpoint

SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
FORMATS = ("q4", "q8")
VOCAB = 283


def sharpen(tensors: dict[str, np.ndarray]) -> None:
    """Make the predictions of a random model depend on its input, so that divergences are not tiny."""
    for name, values in tensors.items():
        if values.ndim == 2:
            values *= 8 if name.endswith("lm_head.weight") else 3


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    sizes = SIZES | {"tie_word_embeddings": request.param}
    with open_source(make_checkpoint(tmp_path, config_overrides=sizes, edit=sharpen)) as opened:
        yield opened


def texts(*lengths: int) -> EncodedTexts:
    generator = np.random.default_rng(5)
    return EncodedTexts("random", tuple(generator.integers(0, VOCAB, length) for length in lengths), VOCAB)


def measure(source: Source, given: EncodedTexts, *, resident: bool, unit: str = "tensor", skipped: int = 0) -> dict:
    found: dict[tuple[str, str], float] = {}
    passes = 0

    def advance(count: int) -> None:
        nonlocal passes
        passes += count

    steps = plan_steps(source.config, unit)  # type: ignore[arg-type]
    with closing(MatrixDivergence(SourceTensors(source, 2), given, FORMATS, threads=2, resident=resident)) as measured:
        measured.prepare()
        for step in steps[:skipped]:
            measured.skip(step)
        for step in steps[skipped:]:
            for name, kind, divergence in measured.measure(step, advance):
                found[name, kind] = divergence
    assert passes == sum(layer_passes(source.config, step, len(FORMATS)) for step in steps[skipped:])
    return found


def expected_divergence(source: Source, given: EncodedTexts, changed: str, kind: str) -> float:
    """Return the mean divergence of the NumPy model with one rounded matrix, in float64."""

    def load(name: str) -> np.ndarray:
        values = source.read(name)
        if name == changed:
            values = dequantise(quantise(kind, values, 32)[0])
        return values.astype(np.float64)

    def plain(name: str) -> np.ndarray:
        return source.read(name).astype(np.float64)

    sums = 0.0
    for ids in given.ids:
        own, other = (
            log_softmax(Reference(source.config, weights).logits(ids.tolist())[:-1, :VOCAB])
            for weights in (load, plain)
        )
        sums += float((np.exp(other) * (other - own)).sum())
    return sums / sum(len(ids) - 1 for ids in given.ids)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_every_figure_is_that_of_a_whole_model(source: Source) -> None:
    given = texts(20, 11)
    found = measure(source, given, resident=False)
    matrices = [name for name, shape in expected_tensors(source.config).items() if len(shape) == 2]
    assert list(found) == [(name, kind) for name in matrices for kind in FORMATS]
    for name in (matrices[0], *matrices[5:9], matrices[-1]):
        assert found[name, "q4"] == pytest.approx(expected_divergence(source, given, name, "q4"), rel=2e-3)
        assert found[name, "q4"] > 20 * found[name, "q8"] > 0


def test_memory_and_resuming_change_nothing(source: Source) -> None:
    given = texts(140, 30)  # One longer than a chunk.
    found = measure(source, given, resident=True)
    assert measure(source, given, resident=False) == found
    later = measure(source, given, resident=True, skipped=3)
    assert later == {key: found[key] for key in later}
    assert 0 < len(later) < len(found)


def test_a_layer_at_a_time_is_divided_by_weights(source: Source) -> None:
    given = texts(25)
    found = measure(source, given, resident=True, unit="layer")
    shapes = expected_tensors(source.config)
    for layer in range(3):
        own = [name for name in shapes if name.startswith(f"model.layers.{layer}.") and len(shapes[name]) == 2]
        assert len(own) == 7
        densities = [found[name, "q4"] / np.prod(shapes[name]) for name in own]
        np.testing.assert_allclose(densities, densities[0], rtol=1e-5)
    assert set(found) == set(measure(source, given, resident=True))


def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    def overflow(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"][:] = tensors["lm_head.weight"][:] = 9e29

    with (
        open_source(make_checkpoint(tmp_path, config_overrides=SIZES, edit=overflow)) as source,
        pytest.raises(NonFiniteLogitsError),
    ):
        measure(source, texts(8), resident=False)


def test_files_share_the_tokens(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    found = text_windows(folder, 320, "two files", ["hello world " * 500, "the others"], 1000)
    assert (found.name, found.vocab_size) == ("two files", VOCAB)
    *long, short = map(len, found.ids)
    assert long == [256, 244]
    assert 2 <= short < 11
    with pytest.raises(UsageError, match="no token to predict"):
        text_windows(folder, 320, "empty", ["", "a"], 100)
