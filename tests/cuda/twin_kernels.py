"""NumPy twins of the kernels that the decoder launches, on the memory of a fake driver.

They show that the launches are right without interpreting PTX, which takes a thousand times longer. `TWINS` maps the
beginning of a kernel's name to its twin, called as `twin(memory, name, parameters)`.
"""

from __future__ import annotations

import math
import re

import numpy as np

from quant.formats import PackedTensor, dequantise, layout
from quant.formats.q4 import CODEBOOK
from qwchat.cpu.kernels import reference

LOOK_UP_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Column of each half among 8 columns of the operands of prefill."""


def view(memory, address, dtype, *shape):
    """Return an array in memory, as a view."""
    return memory.bytes(address, math.prod(shape) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)


def format_of(name):
    return re.search(r"_(q4|q8|lin\d|bf16|f32)(?:_|$)", name)[1]


def matrix(memory, name, p, rows):
    """Return the values (rows, columns) of a matrix from its parts."""
    fmt, parts = format_of(name), {}
    dense = fmt in ("bf16", "f32")
    group = 0 if dense else 32 << p["scale_shift"]
    layouts = layout(fmt, (rows, p["columns"]), group, not dense and bool(p["zeros"]))
    for part, (dtype, shape) in layouts.items():
        parts[part] = view(memory, p[part], dtype, *shape)
    return dequantise(PackedTensor(fmt, (rows, p["columns"]), group, parts)).astype(np.float64)


def store_activations(memory, p, x):
    """Store `x` (tokens, columns) in `floats`, and quantised in `x8` and `xs`, where these are not 0."""
    if p["floats"]:
        view(memory, p["floats"], np.float32, *x.shape)[:] = x
    if not p["x8"]:
        return
    codes, scales, sums = reference.quantise(x.astype(np.float32))
    view(memory, p["x8"], np.int8, *codes.shape)[:] = codes
    records = view(memory, p["xs"], np.int32, *scales.shape, 2)
    records[..., 0], records[..., 1] = scales.view(np.int32), sums.astype(np.int32)


def load_activations(memory, p):
    """Return the activations (rows, columns) of `x`, or of `x8` and `xs`."""
    rows, columns = p["rows"], p["columns"]
    if "x" in p:
        return view(memory, p["x"], np.float32, rows, columns).astype(np.float64)
    codes = view(memory, p["x8"], np.int8, rows, columns // 32, 32)
    records = view(memory, p["xs"], np.int32, rows, columns // 32, 2)
    scales = np.ascontiguousarray(records[..., 0]).view(np.float32)
    assert (records[..., 1] == codes.sum(-1)).all()
    return (codes * scales[..., None].astype(np.float64)).reshape(rows, columns)


def normed(memory, p, first=0):
    """Return the rows of the residual after RMSNorm, and quantisation for a matrix of integers."""
    residual = p["residual"] + 4 * first * p["columns"]
    x = view(memory, residual, np.float32, p["rows"], p["columns"])
    weight = view(memory, p["norm"], np.float32, p["columns"])
    result = reference.rms_norm(x, weight, p["epsilon"])
    return (result if "values" in p else reference.dequantised_activations(result)).astype(np.float64)


def store_output(memory, p, result):
    """Add the bias, and store or add `result` (rows, columns)."""
    if p["bias"]:
        result = result + view(memory, p["bias"], np.float32, result.shape[1])
    for row, values in enumerate(result):
        out = view(memory, p["out"] + 4 * row * p["out_stride"], np.float32, len(values))
        out[:] = (values + (out if p.get("accumulate") else 0)).astype(np.float32)


def embed(memory, name, p):
    rows, columns = p["rows"], p["columns"]
    ids = view(memory, p["ids"], np.int32, rows)
    view(memory, p["residual"], np.float32, rows, columns)[:] = matrix(memory, name, p, 16 * p["tiles"])[ids]


def norm_gemv(memory, name, p):
    first = int(view(memory, p["first"], np.int32, 1)[0]) if p["first"] else 0
    store_output(memory, p, normed(memory, p, first) @ matrix(memory, name, p, 16 * p["tiles"]).T)


def gemv(memory, name, p):
    store_output(memory, p, load_activations(memory, p) @ matrix(memory, name, p, 16 * p["tiles"]).T)


def norm_gate_up(memory, name, p):
    both = (normed(memory, p) @ matrix(memory, name, p, 16 * p["tiles"]).T).astype(np.float32)
    store_activations(memory, p, reference.silu_multiply(*np.split(both, 2, axis=1)))


def silu_quantise(memory, name, p):
    rows = range(p["rows"])
    gate, up = (
        np.stack([view(memory, p[part] + 4 * p["stride"] * row, np.float32, p["columns"]) for row in rows])
        for part in ("gate", "up")
    )
    store_activations(memory, p, reference.silu_multiply(gate, up))


def append(memory, kind, dim, p):
    """Append keys and values to the cache; return the rotated queries (tokens, heads, dim), tokens and position."""
    heads, kv_heads, capacity = p["heads"], p["kv_heads"], p["capacity"]
    tokens, position = view(memory, p["step"], np.int32, 8)[:2]
    qkv = view(memory, p["qkv"], np.float32, tokens, heads + 2 * kv_heads, dim)
    query, key, value = np.split(qkv, [heads, heads + kv_heads], axis=1)
    query, key = (
        reference.rms_norm(x, view(memory, p[norm], np.float32, dim), p["epsilon"]) if p[norm] else x
        for norm, x in (("q_norm", query), ("k_norm", key))
    )
    tables = (view(memory, p[name], np.float32, position + tokens, dim // 2) for name in ("cos", "sin"))
    cos, sin = (table[position:, None] for table in tables)
    query, key = (reference.rotate(x, cos, sin) for x in (query, key))
    key = key - view(memory, p["key_offset"], np.float32, kv_heads, dim)
    here = slice(position, position + tokens)
    for part, new in (("keys", key), ("values", value)):
        new = np.ascontiguousarray(new.swapaxes(0, 1))
        if kind == "f16":
            view(memory, p[part], np.float16, kv_heads, capacity, dim)[:, here] = new
            continue
        codes, steps = reference.quantise_kv(reference.hadamard(new))
        view(memory, p[part], np.int8, kv_heads, capacity, dim)[:, here] = codes
        view(memory, p[f"{part[:-1]}_scales"], np.float16, kv_heads, capacity, dim // 32)[:, here] = steps
    return query, tokens, position


def cached(memory, kind, dim, p):
    """Yield the keys and the values of the cache, (kv_heads, capacity, dim) f32; transformed if they are 8-bit."""
    kv_heads, capacity = p["kv_heads"], p["capacity"]
    for part in ("keys", "values"):
        stored = view(memory, p[part], np.float16 if kind == "f16" else np.int8, kv_heads, capacity, dim)
        if kind == "f16":
            yield stored.astype(np.float32)
            continue
        scales = view(memory, p[f"{part[:-1]}_scales"], np.float16, kv_heads, capacity, dim // 32)
        blocks = stored.reshape(kv_heads, capacity, -1, 32) * scales[..., None].astype(np.float32)
        yield blocks.reshape(stored.shape)


def attention_of(query, keys, values, position):
    """Return the causal attention (tokens, heads, dim) of scaled queries, the first of them at `position`."""
    result = np.empty(query.shape, np.float32)
    for token, row in enumerate(query):
        result[token] = reference.attention(
            row, *(each[:, : position + token + 1].swapaxes(0, 1) for each in (keys, values))
        )
    return result


def attend(memory, name, p):
    kind, dim = re.search(r"attend_(f16|q8)_d(\d+)", name).groups()
    query, tokens, position = append(memory, kind, int(dim), p)
    scale = int(dim) ** -0.5
    if kind == "q8":
        query, scale = reference.through_q8_cache(np.ascontiguousarray(query)), scale / 32
    result = attention_of(query * np.float32(scale), *cached(memory, kind, int(dim), p), position)
    if kind == "q8":
        result = reference.hadamard(result) / np.float32(32)
    store_activations(memory, p, result.reshape(tokens, -1))


def load_operand(memory, p, tokens):
    """Return the activations (tokens, columns) of `xh` and `xf`."""
    stored = view(memory, p["xh"], np.float16, tokens, p["columns"] // 8, 8)
    plain = np.empty(stored.shape, np.float64)
    plain[:, :, LOOK_UP_ORDER] = stored
    return plain.reshape(tokens, -1) * view(memory, p["xf"], np.float32, tokens)[:, None]


def store_operand(memory, p, x):
    """Store `x` (tokens, columns) in `xh` and `xf`, with the largest value of a row between 2^14 and 2^15."""
    largest = np.maximum(np.abs(x).max(-1), np.float32(1e-30))
    factor = np.exp2(np.floor(np.log2(largest)) - 14).astype(np.float32)
    ordered = (x / factor[:, None]).reshape(len(x), -1, 8)[:, :, LOOK_UP_ORDER]
    view(memory, p["xh"], np.float16, *ordered.shape)[:] = ordered
    view(memory, p["xf"], np.float32, len(x))[:] = factor


def norm_rows_f16(memory, name, p):
    x = view(memory, p["residual"], np.float32, p["grid"], p["columns"])
    store_operand(memory, p, reference.rms_norm(x, view(memory, p["weight"], np.float32, p["columns"]), p["epsilon"]))


def silu_f16(memory, name, p):
    gate, up = (
        np.stack([view(memory, p[part] + 4 * p["stride"] * row, np.float32, p["columns"]) for row in range(p["grid"])])
        for part in ("gate", "up")
    )
    store_operand(memory, p, reference.silu_multiply(gate, up))


def gemm(memory, name, p):
    if "table" in p:
        assert (view(memory, p["table"], np.uint8, 16).astype(int) - 128 == CODEBOOK).all()
    sizes = {"scale_shift": p.get("group_shift", 0), "zeros": p.get("zeros", 0)}
    store_output(memory, p, load_operand(memory, p, p["tokens"]) @ matrix(memory, name, p | sizes, 16 * p["tiles"]).T)


def rope_append(memory, name, p):
    kind = name.split("_")[2]
    query, *_ = append(memory, kind, p["head_dim"], p)
    query = query * np.float32(p["query_scale"])
    if kind == "q8":
        query = reference.hadamard(np.ascontiguousarray(query)) / np.float32(32)
    view(memory, p["queries"], np.float16, *query.shape)[:] = query


def prefill_attention(memory, name, p):
    kind, dim = re.search(r"(f16|q8)_d(\d+)", name).groups()
    tokens, position = view(memory, p["step"], np.int32, 8)[:2]
    query = view(memory, p["queries"], np.float16, tokens, p["heads"], int(dim)).astype(np.float32)
    result = attention_of(query * np.log(2, dtype=np.float32), *cached(memory, kind, int(dim), p), position)
    if kind == "q8":
        result = reference.hadamard(result) / np.float32(32)
    ordered = result.reshape(tokens, -1, 8)[:, :, LOOK_UP_ORDER]
    view(memory, p["xh"], np.float16, *ordered.shape)[:] = ordered
    view(memory, p["xf"], np.float32, tokens)[:] = 1


def candidates(memory, name, p):
    tokens, _, first = view(memory, p["step"], np.int32, 3)
    for row in range(tokens - first):
        logits = view(memory, p["logits"] + 4 * p["stride"] * row, np.float32, p["vocab"])
        order = np.lexsort((np.arange(len(logits)), -logits))[: p["k"]]
        values = view(memory, p["values"] + 256 * row, np.float32, 64)
        ids = view(memory, p["ids"] + 256 * row, np.int32, 64)
        values[:], ids[:] = -np.inf, -1
        values[: len(order)], ids[: len(order)] = logits[order], order
        summary = view(memory, p["summaries"] + 16 * row, np.float32, 4)
        summary[0], summary[1] = logits.max(), np.logaddexp.reduce(logits.astype(np.float64))
        summary[2], summary[3] = (~np.isfinite(logits)).sum(), len(order)


TWINS = {
    "candidates": candidates,
    "gemm": gemm,
    "norm_rows_f16": norm_rows_f16,
    "prefill_attention": prefill_attention,
    "rope_append": rope_append,
    "silu_f16": silu_f16,
    "embed": embed,
    "norm_gemv": norm_gemv,
    "gemv": gemv,
    "norm_gate_up": norm_gate_up,
    "silu_quantise": silu_quantise,
    "attend": attend,
}


def twin_executor(kernels):
    """Return what a FakeDriver executes launches with; `kernels`: records of the manifest by name."""
    ordered = sorted(TWINS, key=len, reverse=True)

    def execute(ptx, name, memory, grid, threads, values, shared_bytes):
        twin = TWINS[next(start for start in ordered if name.startswith(start))]
        twin(memory, name, dict(zip(kernels[name].names, values, strict=True)) | {"grid": grid})

    return execute
