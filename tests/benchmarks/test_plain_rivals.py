"""GPTQ, AWQ and the importance matrix are what their papers say, and their files hold what they computed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.rivals import awq_encoder, gptq_encoder
from benchmarks.rivals.float_pass import FloatPass, Tensors, read_checkpoint
from benchmarks.rivals.gptq_encoder import DAMPING, LARGEST, ZERO, Codes
from benchmarks.rivals.importance import importance_matrix
from benchmarks.rivals.packed_writer import Method, write_packed, write_values
from qwchat.model.reference import Reference
from tests.quant.checkpoints import make_checkpoint

WINDOWS = [list(range(40)), list(range(100, 117)), [7]]


def correlated(seed: int, tokens: int, columns: int) -> NDArray[np.float32]:
    """Return inputs (tokens, columns) whose columns depend on each other and differ in size."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((tokens, columns)) @ random.standard_normal((columns, columns)) / columns**0.5
    return (mixed * random.uniform(0.2, 3, columns)).astype(np.float32)


def matrix(seed: int, rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint whose MLP has one and a half groups of 128."""
    return make_checkpoint(tmp_path_factory.mktemp("rivals") / "tiny", config_overrides={"intermediate_size": 192})


def logits(checkpoint: Path, tensors: Tensors) -> NDArray[np.float64]:
    """Return the logits of all windows by the reference in float64."""
    config, _ = read_checkpoint(checkpoint)
    reference = Reference(config, lambda name: tensors[name].astype(np.float64))
    return np.concatenate([reference.logits(ids) for ids in WINDOWS])


def test_the_pass_over_all_windows_is_the_reference(checkpoint: Path) -> None:
    config, tensors = read_checkpoint(checkpoint)
    each = FloatPass(config, tensors, WINDOWS)
    x = each.embed(each.ids)
    for layer in range(config.num_layers):
        x = each.layer(x, layer)
    expected = logits(checkpoint, tensors)
    assert x.dtype == np.float32
    np.testing.assert_allclose(each.head(x), expected, atol=1e-5 * np.abs(expected).max())


def test_the_importance_matrix_holds_mean_squares_of_the_inputs(checkpoint: Path) -> None:
    config, tensors = read_checkpoint(checkpoint)
    seen: dict[str, list[NDArray[np.float64]]] = {}

    def watch(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        seen.setdefault(name, []).append(x)
        return x

    reference = Reference(config, lambda name: tensors[name].astype(np.float64), watch)
    for ids in WINDOWS:
        reference.logits(ids)
    found = importance_matrix(config, tensors, WINDOWS)
    assert len(found) == 7 * config.num_layers
    for theirs, ours in (("blk.1.ffn_down", "1.mlp.down_proj"), ("blk.0.attn_output", "0.self_attn.o_proj")):
        x = np.concatenate(seen[f"model.layers.{ours}.weight"])
        np.testing.assert_allclose(found[f"{theirs}.weight"], np.square(x).mean(0), rtol=1e-4)


def compensated_one_by_one(values: NDArray[np.float32], hessian: NDArray[np.float64], group_size: int) -> Codes:
    """Quantise by the formulas of optimal brain quantisation, without blocks and without a Cholesky factor.

    After column q, w -= (w_q - quantised) / (H^-1)_qq (H^-1)_q, and H^-1 loses row and column q.
    """
    left, inverse = values.astype(np.float64), hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    inverse = np.linalg.inv(inverse)
    codes, scales = np.empty(values.shape, np.uint8), []
    for column in range(values.shape[1]):
        if column % group_size == 0:
            largest = np.abs(left[:, column : column + group_size]).max(1)
            scales.append((2 * largest / LARGEST).astype(np.float16))
        step = scales[-1].astype(np.float64)
        codes[:, column] = np.clip(np.rint(left[:, column] / step) + ZERO, 0, LARGEST)
        error = left[:, column] - step * (codes[:, column].astype(np.float64) - ZERO)
        left -= np.outer(error / inverse[column, column], inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return Codes(codes, np.stack(scales, 1), np.full((len(values), len(scales)), ZERO, np.uint8), group_size)


def test_gptq_is_optimal_brain_quantisation_column_by_column() -> None:
    values, hessian = matrix(0, 24, 72), gptq_encoder.moments(correlated(1, 400, 72))
    found, expected = gptq_encoder.encode(values, hessian, 32), compensated_one_by_one(values, hessian, 32)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)


def test_gptq_lowers_the_error_of_the_output() -> None:
    x, values = correlated(2, 600, 256), matrix(3, 32, 256)

    def error(codes: Codes) -> float:
        return float(np.square(x @ (codes.values() - values).T).mean())

    compensated = error(gptq_encoder.encode(values, gptq_encoder.moments(x)))
    assert compensated < 0.6 * error(gptq_encoder.round_to_nearest(values))


def test_independent_inputs_need_no_compensation() -> None:
    values = matrix(4, 16, 64)
    plain = gptq_encoder.encode(values, np.diag(np.linspace(0.1, 9, 64)), 32)
    np.testing.assert_array_equal(plain.codes, gptq_encoder.round_to_nearest(values, 32).codes)
    steps = plain.scales.astype(np.float32)[:, np.arange(64) // 32]
    assert (np.abs(plain.values() - values) <= 0.501 * steps).mean() > 0.98  # The largest of a group may be cut off.


def test_inputs_that_are_always_zero_take_no_part() -> None:
    x, values = correlated(5, 100, 64), matrix(6, 8, 64)
    x[:, 10] = 0
    found = gptq_encoder.encode(values, gptq_encoder.moments(x), 32)
    assert (found.codes[:, 10] == ZERO).all()


def test_awq_codes_are_within_half_a_step() -> None:
    values = matrix(7, 16, 160)
    found = awq_encoder.encode(values)
    steps = found.scales.astype(np.float32)[:, np.arange(160) // 128]
    assert found.scales.shape == (16, 2)
    assert (np.abs(found.values() - values) <= 1.01 * steps).all()
    assert (np.abs(found.values() - values) <= 0.501 * steps).mean() > 0.95


def test_scales_of_awq_preserve_the_function(checkpoint: Path) -> None:
    config, tensors = read_checkpoint(checkpoint)
    expected, changed = logits(checkpoint, tensors), dict(tensors)
    random = np.random.default_rng(8)
    for layer in range(config.num_layers):
        scales = {
            producer: random.uniform(0.2, 5, size).astype(np.float32)
            for producer, size in (("input_layernorm", 64), ("post_attention_layernorm", 64), ("mlp.up_proj", 192))
        }
        awq_encoder.fold(changed, f"model.layers.{layer}", scales)
    differing = [name for name in tensors if not np.array_equal(tensors[name], changed[name])]
    assert len(differing) == 8 * config.num_layers  # Two norms, and all matrices but o_proj.
    np.testing.assert_allclose(logits(checkpoint, changed), expected, atol=1e-5 * np.abs(expected).max())


def test_awq_finds_scales_and_ranges_that_help() -> None:
    x, values = correlated(9, 300, 128), matrix(10, 32, 128)
    x[:, 5] *= 40
    tensors = {"w": values}

    def output() -> NDArray[np.float32]:
        return x @ tensors["w"].T

    expected = output()
    plain = np.square(x @ awq_encoder.encode(values).values().T - expected).mean()
    scales, loss = awq_encoder.search_scales(tensors, ["w"], np.abs(x).mean(0), output)
    assert tensors["w"] is values
    assert loss < 0.8 * plain
    assert scales[5] == scales.max()
    clipped = awq_encoder.clip(values, x)
    assert np.square(x @ awq_encoder.encode(clipped).values().T - expected).mean() < plain


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_files_hold_the_codes(checkpoint: Path, tmp_path: Path, method: Method) -> None:
    config, tensors = read_checkpoint(checkpoint)
    encoders = {"gptq": gptq_encoder.encode_model, "awq": awq_encoder.encode_model}
    codes = dict(encoders[method](config, tensors, WINDOWS))
    assert len(codes) == 7 * config.num_layers
    size = write_packed(checkpoint, tmp_path / method, method, codes, tensors)
    _, read = read_checkpoint(tmp_path / method)
    assert set(read) == set(tensors)
    for name, values in read.items():
        expected = codes[name].values() if name in codes else tensors[name].astype(np.float16)
        np.testing.assert_array_equal(values, expected, err_msg=name)
    packed = sum(each.codes.size // 2 + each.scales.size * 2 + each.zeros.size // 2 for each in codes.values())
    assert size == packed + sum(2 * values.size for name, values in tensors.items() if name not in codes)


def test_values_are_written_exactly(checkpoint: Path, tmp_path: Path) -> None:
    _, tensors = read_checkpoint(checkpoint)
    changed = {name: values * np.float32(1 / 3) for name, values in tensors.items()}
    write_values(checkpoint, tmp_path / "values", changed)
    _, read = read_checkpoint(tmp_path / "values")
    for name, values in itertools.islice(changed.items(), 10):
        np.testing.assert_array_equal(read[name], values)
