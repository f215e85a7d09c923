"""RMSNorm, SwiGLU, RoPE and the cache in prefill, interpreted, against their twins and the CPU's definitions."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.cpu.kernels import reference
from qwchat.cuda.kernels import reference_prefill, reference_prefill_attention
from qwchat.cuda.kernels.reference_prefill_attention import Rotation
from qwchat.cuda.manifest import TARGETS
from tests.cuda.interpreter import Memory
from tests.cuda.prefill_runs import kernel_of, launch, random_rows, ulps
from tests.tiers import some

SHAPES = [(3, 896), (2, 32), (1, 2560), (9, 4864)]
HEADS = [(4, 2, 64), (6, 1, 128), (7, 1, 64), (8, 1, 128), (2, 2, 64)]


def assert_operand(memory: Memory, xh: int, xf: int, wanted: np.ndarray) -> None:
    """Compare with the twin: the same factors, and halves that differ by the last bit at most, seldom."""
    halves, factors = reference_prefill.activation_rows(wanted)
    np.testing.assert_array_equal(memory.back(xf, np.float32), factors)
    apart = ulps(memory.back(xh, np.float16, wanted.shape), halves)
    assert apart.max() <= 1
    assert apart.mean() < 0.01


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("tokens", "columns"), some(SHAPES, 2))
def test_norm(target: int, tokens: int, columns: int) -> None:
    x = random_rows(tokens, columns)
    weight = np.random.default_rng(1).uniform(0.5, 2, columns).astype(np.float32)
    memory = Memory()
    xh, xf = memory.place_empty((tokens, columns), np.float16), memory.place_empty(tokens, np.float32)
    launch(
        kernel_of("norm_rows_f16", target),
        memory,
        tokens,
        residual=memory.place(x),
        weight=memory.place(weight),
        xh=xh,
        xf=xf,
        columns=columns,
        epsilon=1e-6,
    )
    assert_operand(memory, xh, xf, reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("tokens", "columns"), some(SHAPES, 2))
def test_silu(target: int, tokens: int, columns: int) -> None:
    x = random_rows(tokens, 2 * columns + 4)
    x[:, 5] = -200
    memory = Memory()
    xh, xf = memory.place_empty((tokens, columns), np.float16), memory.place_empty(tokens, np.float32)
    gate = memory.place(x)
    launch(
        kernel_of("silu_f16", target),
        memory,
        tokens,
        gate=gate,
        up=gate + 4 * columns,
        xh=xh,
        xf=xf,
        columns=columns,
        stride=2 * columns + 4,
    )
    assert_operand(memory, xh, xf, reference.silu_multiply(x[:, :columns], x[:, columns : 2 * columns]))


def test_an_operand_in_plain_order_is_the_row() -> None:
    x = random_rows(5, 64)
    values = reference_prefill.plain_rows(*reference_prefill.activation_rows(x))
    assert (np.abs(values - x) <= np.abs(x) * 2**-11 + np.abs(x).max(1, keepdims=True) * 2**-38).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stays_in_its_row(poison: float) -> None:
    x = random_rows(3, 64)
    x[1, 9] = poison
    memory = Memory()
    xh, xf = memory.place_empty((3, 64), np.float16), memory.place_empty(3, np.float32)
    weight = memory.place(np.ones(64, np.float32))
    arguments = {"residual": memory.place(x), "weight": weight, "xh": xh, "xf": xf, "columns": 64, "epsilon": 1e-6}
    launch(kernel_of("norm_rows_f16", 90), memory, 3, **arguments)
    values = reference_prefill.plain_rows(memory.back(xh, np.float16, (3, 64)), memory.back(xf, np.float32))
    assert np.isfinite(values[[0, 2]]).all()
    assert not np.isfinite(values[1]).all()


def random_rotation(tokens: int, kv_heads: int, head_dim: int, full: bool) -> Rotation:
    random = np.random.default_rng(tokens + head_dim)
    angles = random.uniform(-3, 3, (tokens, head_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    if not full:
        return Rotation(cos, sin)
    norms = random.uniform(0.5, 2, (2, head_dim)).astype(np.float32)
    return Rotation(cos, sin, norms[0], norms[1], random.standard_normal(kv_heads * head_dim).astype(np.float32))


def run_rope(kind, target, qkv, heads, kv_heads, head_dim, position, rotation, caches):
    """Return queries, and the parts of the cache after it (kv_heads, capacity, …)."""
    memory, tokens = Memory(), len(qkv)
    below = np.full((position, head_dim // 2), np.nan, np.float32)
    places = {name: memory.place(part) for name, part in caches.items()}
    queries = memory.place_empty((tokens, heads, head_dim), np.float16)
    optional = {"q_norm": rotation.q_norm, "k_norm": rotation.k_norm, "key_offset": rotation.key_offset}
    launch(
        kernel_of(f"rope_append_{kind}", target),
        memory,
        -(-tokens * (heads + 2 * kv_heads) // 8),
        qkv=memory.place(qkv),
        **{name: 0 if part is None else memory.place(part) for name, part in optional.items()},
        cos=memory.place(np.concatenate([below, rotation.cos])),
        sin=memory.place(np.concatenate([below, rotation.sin])),
        step=memory.place(np.array([tokens, position], np.int32)),
        queries=queries,
        **places,
        qkv_stride=qkv.shape[1],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        capacity=caches["keys"].shape[1],
        epsilon=rotation.epsilon,
        query_scale=float(reference_prefill_attention.query_scale(head_dim)),
    )
    parts = {name: memory.back(place, caches[name].dtype, caches[name].shape) for name, place in places.items()}
    return memory.back(queries, np.float16, (tokens, heads, head_dim)), parts


def poisoned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.full((*shape[:-1], shape[-1] * np.dtype(dtype).itemsize), 0xFF, np.uint8).view(dtype)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["f16", "q8"])
@pytest.mark.parametrize("full", [False, True], ids=["qwen2", "qwen3"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), some(HEADS, 3))
def test_rope(target: int, kind: str, full: bool, heads: int, kv_heads: int, head_dim: int) -> None:
    tokens, position, capacity = 5, 61, 128
    size = (heads + 2 * kv_heads) * head_dim
    qkv = (np.random.default_rng(size).standard_normal((tokens, size)) * 3).astype(np.float32)
    rotation = random_rotation(tokens, kv_heads, head_dim, full)
    wanted = reference_prefill_attention.rope(qkv, heads, kv_heads, head_dim, rotation)
    caches = {}
    for name in ("keys", "values"):
        caches[name] = poisoned((kv_heads, capacity, head_dim), np.float16 if kind == "f16" else np.int8)
        if kind == "q8":
            caches[name[:-1] + "_scales"] = poisoned((kv_heads, capacity, head_dim // 32), np.float16)
    queries, parts = run_rope(kind, target, qkv, heads, kv_heads, head_dim, position, rotation, caches)
    if kind == "f16":
        expected = {"keys": wanted.keys.astype(np.float16), "values": wanted.values.astype(np.float16)}
    else:
        wanted = reference_prefill_attention.transformed(wanted)
        expected = {}
        for name, x in (("key", wanted.keys), ("value", wanted.values)):
            # This is the CPU's own definition.
            expected[name + "s"], expected[name + "_scales"] = reference.quantise_kv(x)
    slack = int(full)  # The sum of the norm is in another order.
    assert ulps(queries, wanted.queries).max() <= slack
    for name, part in parts.items():
        here = part[:, position : position + tokens].swapaxes(0, 1)
        if part.dtype == np.int8:
            assert np.abs(here.astype(int) - expected[name]).max() <= slack
        else:
            assert ulps(here, expected[name]).max() <= slack
        for rest in (part[:, :position], part[:, position + tokens :]):
            assert (np.ascontiguousarray(rest).view(np.uint8) == 0xFF).all()


def test_an_8_bit_cache_stores_zeros_and_marks_what_is_not_finite() -> None:
    qkv = np.zeros((2, 3 * 64), np.float32)
    qkv[1, 70], qkv[1, 140] = np.nan, np.inf
    caches = {}
    for name in ("keys", "values"):
        caches[name] = poisoned((1, 64, 64), np.int8)
        caches[name[:-1] + "_scales"] = poisoned((1, 64, 2), np.float16)
    _, parts = run_rope("q8", 80, qkv, 1, 1, 64, 0, random_rotation(2, 1, 64, False), caches)
    for name in ("key", "value"):
        assert (parts[name + "s"][0, 0] == 0).all()
        assert (parts[name + "_scales"][0, 0] == 0).all()
        assert np.isnan(parts[name + "_scales"][0, 1, 0])
    assert parts["value_scales"][0, 1, 1] == 0
