"""The decode attention kernels, interpreted from the committed PTX, against their NumPy twin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qwchat.cuda.kernels.reference_attention import attend, quantise
from qwchat.cuda.manifest import TARGETS, ptx_text
from tests.cuda.attention_runs import Case, Device, poison, random_layer, scales_of
from tests.cuda.interpreter import Kernel
from tests.cuda.mutations import survivors
from tests.tiers import count, some

SHAPES = [("f16", 64), ("f16", 128), ("q8", 64), ("q8", 128)]
HEADS = [(1, 1), (12, 2), (14, 2), (7, 1), (8, 1), (16, 2)]
POSITIONS = [0, 1, 15, 16, 111, 127, 128, 300, 1000, 2991]
SCALE_TOLERANCE = 1e-5


def random_qkv(case: Case, tokens: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(tokens, case.width)) * 2).astype(np.float32)


def capacity_for(end: int) -> int:
    return -(-end // 64) * 64


def check(case: Case, tokens: int, position: int, target: int, kernel: Kernel | None = None) -> None:
    layer, cache = random_layer(case, capacity_for(position + tokens))
    poison(cache, position)
    device = Device(case, layer, cache, target, tokens, kernel)
    qkv = random_qkv(case, tokens)
    codes, records = device.attend(qkv, position)
    wanted_codes, wanted_records = quantise(attend(layer, cache, qkv, position))
    np.testing.assert_allclose(scales_of(records), scales_of(wanted_records), rtol=SCALE_TOLERANCE)
    difference = np.abs(codes.astype(int) - wanted_codes)
    assert difference.max() <= 1
    assert difference.mean() < 2e-3
    floats = device.array("floats")[:tokens]
    np.testing.assert_array_equal(quantise(floats)[0], codes)
    np.testing.assert_array_equal(quantise(floats)[1], records)
    sums = codes.reshape(tokens, -1, 32).sum(-1, dtype=np.int32)
    np.testing.assert_array_equal(records[..., 1].view(np.int32), sums)
    for name in ("keys", "values", "key_scales", "value_scales"):
        if device.places[name]:
            np.testing.assert_array_equal(device.array(name), getattr(cache, name))


def random_cases(number: int) -> list[tuple[Case, int, int, int]]:
    random = np.random.default_rng(11)
    cases = []
    for (kind, head_dim), _ in itertools.product(SHAPES, range(number)):
        heads = HEADS[random.integers(len(HEADS))]
        norms, offsets = (bool(bit) for bit in random.integers(0, 2, 2))
        case = Case(kind, head_dim, *heads, int(random.integers(1, 8)), norms, offsets)
        place = (int(random.integers(1, 9)), int(random.choice(POSITIONS[: count(10, 8)])))
        cases.append((case, *place, int(random.choice(TARGETS))))
    return cases


@pytest.mark.parametrize(("case", "tokens", "position", "target"), random_cases(count(40, 2)), ids=str)
def test_attention_is_that_of_the_twin(case: Case, tokens: int, position: int, target: int) -> None:
    check(case, tokens, position, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "head_dim"), SHAPES)
def test_every_kernel_and_target(kind: str, head_dim: int, target: int) -> None:
    check(Case(kind, head_dim, 7, 1, 2, norms=True), 2, 140, target)


@pytest.mark.parametrize(
    ("tokens", "position", "splits"), some([(8, 121, 3), (8, 9, 1), (5, 14, 2), (2, 127, 2), (8, 505, 7)], 3)
)
@pytest.mark.parametrize(("kind", "head_dim"), some(SHAPES, 3))
@pytest.mark.parametrize("heads", [7, 8])
def test_rows_of_one_pass_have_the_bits_of_single_passes(
    kind: str, head_dim: int, heads: int, tokens: int, position: int, splits: int
) -> None:
    case = Case(kind, head_dim, heads, 1, splits, norms=True)
    layer, cache = random_layer(case, capacity_for(position + tokens))
    poison(cache, position)
    together, single = Device(case, layer, cache, 80), Device(case, layer, cache, 80, 1)
    qkv = random_qkv(case, tokens)
    codes, records = together.attend(qkv, position)
    for token in range(tokens):
        one_codes, one_records = single.attend(qkv[token : token + 1], position + token)
        np.testing.assert_array_equal(codes[token], one_codes[0])
        np.testing.assert_array_equal(records[token], one_records[0])
    assert together.cache_bytes() == single.cache_bytes()


@pytest.mark.parametrize(("kind", "head_dim"), SHAPES)
def test_a_pass_can_be_repeated_in_any_order_of_blocks(kind: str, head_dim: int) -> None:
    case = Case(kind, head_dim, 14, 2, 3)
    layer, cache = random_layer(case, 448)
    device, qkv = Device(case, layer, cache, 90, 2), random_qkv(case, 2)
    first = device.attend(qkv, 400)
    for seed in range(1, 3):
        again = device.attend(qkv, 400, seed)
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize(("kind", "head_dim"), some(SHAPES, 3))
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_reaches_its_own_and_later_rows_only(
    kind: str, head_dim: int, part: str, number: float
) -> None:
    case = Case(kind, head_dim, 7, 1, 2)
    layer, cache = random_layer(case, 192)
    tokens, bad, position = 4, 2, 125
    qkv = random_qkv(case, tokens)
    clean_codes, clean_records = Device(case, layer, cache, 80, tokens).attend(qkv, position)
    column = {"query": 3, "key": 7 * head_dim + 3, "value": 8 * head_dim + 3}[part]
    qkv[bad, column] = number
    codes, records = Device(case, layer, cache, 80, tokens).attend(qkv, position)
    np.testing.assert_array_equal(codes[:bad], clean_codes[:bad])
    np.testing.assert_array_equal(records[:bad], clean_records[:bad])
    scales = scales_of(records)
    assert np.isnan(scales[bad]).any()
    if part == "query":
        assert np.isfinite(scales[bad + 1]).all()
    else:
        assert np.isnan(scales[bad + 1]).any()


@pytest.mark.parametrize(("part", "column"), [("key", 7), ("value", 8)])
def test_a_key_or_value_beyond_f16_is_reported(part: str, column: int) -> None:
    case = Case("f16", 64, 7, 1, 1, offsets=False)
    layer, cache = random_layer(case, 64)
    qkv = random_qkv(case, 1)
    qkv[0, column * 64 + 5] = 7e4 if part == "value" else 1e6
    _, records = Device(case, layer, cache, 75, 1).attend(qkv, 20)
    assert np.isnan(scales_of(records)).any()


def test_a_long_tail_of_small_weights_is_kept() -> None:
    case = Case("q8", 64, 1, 1, 1, offsets=False)
    layer, cache = random_layer(case, 1024)
    qkv = random_qkv(case, 1)
    cache.values[:], cache.value_scales[:] = 0, 1.0
    cache.values[:, :, 0] = 100
    direction = np.zeros(64, np.float32)
    direction[31], direction[63] = 40, 0  # an angle that hardly turns
    qkv[0, :64], qkv[0, 64:128], qkv[0, 128:] = direction, direction * 0.055, 0
    cache.keys[:], cache.key_scales[:] = 0, 1.0
    codes, records = Device(case, layer, cache, 90, 1).attend(qkv, 1000)
    wanted_codes, wanted_records = quantise(attend(layer, cache, qkv, 1000))
    np.testing.assert_allclose(scales_of(records), scales_of(wanted_records), rtol=SCALE_TOLERANCE)
    assert np.abs(codes.astype(int) - wanted_codes).max() <= 1


@pytest.mark.interpreter_only
@pytest.mark.parametrize(("kind", "head_dim"), some(SHAPES, 4))
def test_changes_of_the_kernel_are_noticed(kind: str, head_dim: int) -> None:
    def checks(kernel: Kernel) -> None:
        check(Case(kind, head_dim, 7, 1, 2, norms=True), 3, 141, 80, kernel)
        check(Case(kind, head_dim, 14, 2, 3), 2, 300, 80, kernel)

    name, tried = f"attend_{kind}_d{head_dim}", count(200, 4)
    assert survivors(ptx_text(name, 80), name, checks, kinds=("barrier",), most=count(0, 2)) == []
    found = survivors(ptx_text(name, 80), name, checks, kinds=("offset", "swap"), most=tried)
    # Exponents of partial results are a reference that cancels: those of another row, split or warp do as well. Halves
    # that rounding takes from few weights of 2^-12 hardly count.
    assert len(found) <= max(2, 0.05 * tried), [str(change) for change in found]
