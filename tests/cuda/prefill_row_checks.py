"""Checks of the kernels of prefill that work on rows: a kernel against its twin, on one shape."""

from __future__ import annotations

import numpy as np

from qwchat.cpu.kernels import reference
from qwchat.cuda.kernels import reference_prefill, reference_prefill_attention
from qwchat.cuda.kernels.reference_prefill_attention import Rotation
from tests.cuda.interpreter import Kernel, Memory
from tests.cuda.prefill_runs import launch, random_rows, ulps


def assert_operand(memory: Memory, xh: int, xf: int, wanted: np.ndarray) -> None:
    """Compare with the twin: the same factors, and halves that differ by the last bit at most, seldom."""
    halves, factors = reference_prefill.activation_rows(wanted)
    np.testing.assert_array_equal(memory.back(xf, np.float32), factors)
    apart = ulps(memory.back(xh, np.float16, wanted.shape), halves)
    assert apart.max() <= 1
    assert apart.mean() < 0.01


def spread_peaks(x: np.ndarray, columns: int) -> None:
    """Give each row a largest value of its own, at places that are spread over the columns."""
    for row, values in enumerate(x):
        values[row * columns // len(x) + 3] = 4 * np.abs(values).max()


def check_norm(kernel: Kernel, tokens: int, columns: int) -> None:
    """Check `norm_rows_f16`."""
    x = random_rows(tokens, columns)
    spread_peaks(x, columns)
    weight = np.random.default_rng(1).uniform(0.5, 2, columns).astype(np.float32)
    memory = Memory()
    xh, xf = memory.place_empty((tokens, columns), np.float16), memory.place_empty(tokens, np.float32)
    places = {"residual": memory.place(x), "weight": memory.place(weight), "xh": xh, "xf": xf}
    launch(kernel, memory, tokens, **places, columns=columns, epsilon=1e-6)
    assert_operand(memory, xh, xf, reference.rms_norm(x, weight, 1e-6))


def check_silu(kernel: Kernel, tokens: int, columns: int) -> None:
    """Check `silu_f16`, with rows that are farther apart than they are long."""
    stride = 2 * columns + 4
    x = random_rows(tokens, stride)
    for half in (x[:, :columns], x[:, columns : 2 * columns]):
        spread_peaks(half, columns)
    x[:, 5] = -200
    memory = Memory()
    xh, xf = memory.place_empty((tokens, columns), np.float16), memory.place_empty(tokens, np.float32)
    gate = memory.place(x)
    places = {"gate": gate, "up": gate + 4 * columns, "xh": xh, "xf": xf}
    launch(kernel, memory, tokens, **places, columns=columns, stride=stride)
    assert_operand(memory, xh, xf, reference.silu_multiply(x[:, :columns], x[:, columns : 2 * columns]))


def random_rotation(tokens: int, kv_heads: int, head_dim: int, full: bool) -> Rotation:
    """Return random angles; if `full`, norms and offsets as well."""
    random = np.random.default_rng(tokens + head_dim)
    angles = random.uniform(-3, 3, (tokens, head_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    if not full:
        return Rotation(cos, sin)
    norms = random.uniform(0.5, 2, (2, head_dim)).astype(np.float32)
    return Rotation(cos, sin, norms[0], norms[1], random.standard_normal(kv_heads * head_dim).astype(np.float32))


def run_rope(
    kernel: Kernel,
    qkv: np.ndarray,
    heads: int,
    kv_heads: int,
    head_dim: int,
    position: int,
    rotation: Rotation,
    caches: dict[str, np.ndarray],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return queries, and the parts of the cache after it (kv_heads, capacity, …)."""
    memory, tokens = Memory(), len(qkv)
    below = np.full((position, head_dim // 2), np.nan, np.float32)
    places = {name: memory.place(part) for name, part in caches.items()}
    queries = memory.place_empty((tokens, heads, head_dim), np.float16)
    optional = {"q_norm": rotation.q_norm, "k_norm": rotation.k_norm, "key_offset": rotation.key_offset}
    launch(
        kernel,
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
    """Return an array of bytes that nothing was written to."""
    return np.full((*shape[:-1], shape[-1] * np.dtype(dtype).itemsize), 0xFF, np.uint8).view(dtype)


def empty_caches(kind: str, kv_heads: int, capacity: int, head_dim: int) -> dict[str, np.ndarray]:
    """Return the parts of a cache, full of poison."""
    caches = {}
    for name in ("keys", "values"):
        caches[name] = poisoned((kv_heads, capacity, head_dim), np.float16 if kind == "f16" else np.int8)
        if kind == "q8":
            caches[name[:-1] + "_scales"] = poisoned((kv_heads, capacity, head_dim // 32), np.float16)
    return caches


def check_rope(kernel: Kernel, kind: str, full: bool, tokens: int, heads: int, kv_heads: int, head_dim: int) -> None:
    """Check `rope_append_*`: queries, the pass's part of the cache, and that nothing else is written."""
    position, size = 61, (heads + 2 * kv_heads) * head_dim
    qkv = (np.random.default_rng(size).standard_normal((tokens, size)) * 3).astype(np.float32)
    rotation = random_rotation(tokens, kv_heads, head_dim, full)
    wanted = reference_prefill_attention.rope(qkv, heads, kv_heads, head_dim, rotation)
    caches = empty_caches(kind, kv_heads, 128, head_dim)
    queries, parts = run_rope(kernel, qkv, heads, kv_heads, head_dim, position, rotation, caches)
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
