"""Causal attention of prefill: flash attention on f16 tensor cores over an f16 or 8-bit cache.

A row is one query head of one token; the rows of a KV head are ordered by token, then by head of its group. A block has
64 rows of one KV head, 16 per warp, so the tiles of keys and values that it copies serve all heads of the group. It
passes over all positions up to its last token's, in tiles, with a running softmax in f32 (Dao et al. 2022). Scores are
exponents of 2: `rope_append` scales the queries for that.

The operand layout is such that scores become weights without leaving their registers: the sums of Q·Kᵀ are the A
operand of P·V. Values come transposed by `ldmatrix`. Results over an 8-bit cache pass the Walsh-Hadamard transform
again.

The output is an operand of the next GEMM with the factor 1: a mean of values is within the range of f16 if the values
are. An 8-bit cache is decoded to f16, so its transformed values must not exceed 65,504, nor other values 2,047.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.key_value_tiles import (
    THREADS,
    TILE_BYTES,
    TileCopy,
    code_tiles,
    half_tiles,
    tile_positions,
)
from qwchat.cuda.kernels.source_text import define
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

_ROWS = 64
_STAGE_BYTES = 2 * TILE_BYTES
_HEAD_DIMS = (64, 128)
_INFINITY = np.float32(np.inf)
_INVERSE_32 = np.float32(1 / 32)


@device
def _row(row, rows, group):
    """Return token and head within its group of a row; rows beyond the last repeat it."""
    row = U(p.min_i(I(row), I(rows - 1)))
    token = p.divide_u(row, U(group))
    return I(token), I(row - U(token * U(group)))


@device
def _quad_sum(x):
    """Return the sum over the four lanes that share a row."""
    x += p.shuffle_xor_f(x, U(1))
    return x + p.shuffle_xor_f(x, U(2))


@device
def _quad_max(x):
    """Return the maximum over the four lanes that share a row."""
    x = p.max_f(x, p.shuffle_xor_f(x, U(1)))
    return p.max_f(x, p.shuffle_xor_f(x, U(2)))


@device
def _across_lanes(x, lane, distance):
    """Return a stage of the Walsh-Hadamard transform between lanes."""
    other = p.shuffle_xor_f(x, U(distance))
    return other - x if lane & distance else other + x


@device
def _store_pair(at, exists, part, first, second):
    """Store columns 2 * part and 2 * part + 1 of 8, in the order 0, 4, 1, 5, 2, 6, 3, 7, if the row exists.

    A word has the columns k and k + 4: lanes 0 and 2 of four exchange one column, and so do 1 and 3.
    """
    upper = part >= 2
    other = p.shuffle_xor_f(first if upper else second, U(2))
    low, high = other if upper else first, second if upper else other
    if exists:
        p.store1(at + A(4 * I((2 * part - 3) if upper else (2 * part))), p.pair_of(low, high))


def _numbered(name: str, count: int) -> list[list[str]]:
    """Return the names of `count` blocks of 8 columns: 4 sums each, two of the upper and two of the lower row."""
    return [[f"{name}{block}_{index}" for index in range(4)] for block in range(count)]


def _scores(head_dim: int, target: int) -> list[str]:
    """Return the lines that multiply queries and keys of a tile."""
    lines = []
    for block, sums in enumerate(_numbered("s", tile_positions(head_dim) // 8)):
        names = ", ".join(sums)
        lines.append(f"{' = '.join(sums)} = F(0)")
        for part in range(head_dim // 32):
            base = "odd_keys" if part % 2 else "even_keys"
            offset = 16 * block * head_dim + 128 * (part // 2)
            lines.append(f"b = p.shared_load4(U({base} + U({offset})))")
            q, r = f"q{part}", f"r{part}"
            if target >= 80:
                for pair in (0, 2):
                    a = f"{q}[{pair}], {r}[{pair}], {q}[{pair + 1}], {r}[{pair + 1}]"
                    lines.append(f"{names} = p.mma_f16({a}, b[{pair}], b[{pair + 1}], {names})")
            else:
                lines += [f"{names} = p.mma_f16_k8({q}[{i}], {r}[{i}], b[{i}], {names})" for i in range(4)]
    return lines


def _softmax(head_dim: int) -> list[str]:
    """Return the lines that mask the scores, update maxima and sums, and turn scores into weights."""
    sums = _numbered("s", tile_positions(head_dim) // 8)
    upper, lower = (
        [pair[index] for pair in sums for index in (0, 1)],
        [pair[index] for pair in sums for index in (2, 3)],
    )
    lines = [f"if I(first + {tile_positions(head_dim) - 1}) > warp_limit:"]
    for block, names in enumerate(sums):
        for index, name in enumerate(names):
            limit = "limit0" if index < 2 else "limit1"
            lines.append(f"    {name} = {name} if I(own + {8 * block + index % 2}) <= {limit} else F(-INFINITY)")
    for number, names in ((0, upper), (1, lower)):
        lines.append(f"top = {names[0]}")
        lines += [f"top = p.max_f(top, {name})" for name in names[1:]]
        lines += [
            f"top = p.max_f(maximum{number}, quad_max(top))",
            f"factor{number} = p.ex2_approx(maximum{number} - top)",
            f"maximum{number} = top",
        ]
        lines += [f"{name} = p.ex2_approx({name} - top)" for name in names]
        lines.append(f"total{number} = total{number} * factor{number} + ({' + '.join(names)})")
    for names in _numbered("o", head_dim // 8):
        lines += [f"{name} *= factor{index // 2}" for index, name in enumerate(names)]
    for block, (a, b, c, d) in enumerate(sums):
        lines.append(f"p{block}, t{block} = pack({a}, {b}), pack({c}, {d})")
    return lines


def _weighted(head_dim: int, target: int) -> list[str]:
    """Return the lines that add the weighted values of a tile."""
    lines = []
    outputs = [", ".join(names) for names in _numbered("o", head_dim // 8)]
    for pair in range(head_dim // 16):
        lines.append(f"at = U(values_at + U(swizzle ^ U({32 * pair})))")
        for block in range(0, tile_positions(head_dim) // 8, 2):
            lines.append(f"v = p.ldmatrix4_trans(U(at + U({16 * block * head_dim})))")
            for half in range(2):
                names, b = outputs[2 * pair + half], f"v[{2 * half}]"
                if target >= 80:
                    weights = f"p{block}, t{block}, p{block + 1}, t{block + 1}"
                    lines.append(f"{names} = p.mma_f16({weights}, {b}, v[{2 * half + 1}], {names})")
                else:
                    lines.append(f"{names} = p.mma_f16_k8(p{block}, t{block}, {b}, {names})")
                    lines.append(f"{names} = p.mma_f16_k8(p{block + 1}, t{block + 1}, v[{2 * half + 1}], {names})")
    return lines


def _transformed(head_dim: int) -> list[str]:
    """Return the lines of the Walsh-Hadamard transform of the outputs, in groups of 32 columns."""
    lines = []
    outputs = _numbered("o", head_dim // 8)

    def between(first: str, second: str) -> None:
        lines.append(f"{first}, {second} = {first} + {second}, {first} - {second}")

    for start in range(0, head_dim // 8, 4):
        a, b, c, d = outputs[start : start + 4]
        for pairs in (((a, c), (b, d)), ((a, b), (c, d))):
            for one, other in pairs:
                for first, second in zip(one, other, strict=True):
                    between(first, second)
        for names in (a, b, c, d):
            between(names[0], names[1])
            between(names[2], names[3])
            lines += [f"{name} = across_lanes(across_lanes({name}, lane, 1), lane, 2)" for name in names]
    return lines


def _results(head_dim: int, unit: str) -> list[str]:
    """Return the lines that store the two rows of a lane."""
    lines = []
    for number in range(2):
        lines += [
            f"token = I(limit{number} - p.read1i(step + A(4)))",
            f"exists = I(warp_row + slot + {8 * number}) < rows",
            f"head = I(p.min_i(I(warp_row + slot + {8 * number}), I(rows - 1)) - token * group)",
            f"at = xh + A(2) * (A(token) * A(heads) + A(kv_head * group + head)) * A({head_dim})",
            f"scale = p.div(F({unit}), quad_sum(total{number}))",
        ]
        for block, names in enumerate(_numbered("o", head_dim // 8)):
            first, second = names[2 * number], names[2 * number + 1]
            lines.append(f"store_pair(at + A({16 * block}), exists, part, {first} * scale, {second} * scale)")
        lines += [
            "if exists and kv_head == 0 and head == 0 and part == 0:",
            "    p.store1f(xf + A(4) * A(token), F(1))",
        ]
    return lines


def _indented(lines: list[str], depth: int) -> str:
    return "".join(f"{' ' * 4 * depth}{line}\n" for line in lines)


def _queries(head_dim: int) -> list[str]:
    """Return the lines that load the queries of both rows: 8 dimensions of each 32."""
    return [
        f"{name}{part} = p.read4(queries + A(2) * ((A(token{number}) * A(heads) + A(kv_head * group + head{number})) "
        f"* A({head_dim}) + A({32 * part} + 8 * part)))"
        for number, name in enumerate("qr")
        for part in range(head_dim // 32)
    ]


def _source(name: str, head_dim: int, parts: str, target: int) -> str:
    """Return the text of a kernel. It is generated since each sum needs a local variable of its own."""
    positions, row_bytes = tile_positions(head_dim), 2 * head_dim
    zeros = [f"{' = '.join(names)} = F(0)" for names in _numbered("o", head_dim // 8)]
    transform = _transformed(head_dim) if "scales" in parts else []
    unit = "INVERSE_32" if "scales" in parts else "1"
    return f"""
def {name}(queries, {parts}, step, xh, xf, heads, kv_heads, capacity):
    tokens, position = p.read1i(step), p.read1i(step + A(4))
    group = I(p.divide_u(U(heads), U(kv_heads)))
    rows = I(tokens * group)
    turn = p.divide_u(U(cuda.blockIdx.x), U(kv_heads))
    kv_head = I(U(cuda.blockIdx.x) - U(turn * U(kv_heads)))
    first_row = I({_ROWS} * (((rows + {_ROWS - 1}) >> 6) - 1 - I(turn)))
    if first_row < 0:
        return
    thread = I(cuda.threadIdx.x)
    lane = I(thread & 31)
    slot, part = I(lane >> 2), I(lane & 3)
    warp_row = I(first_row + 16 * (thread >> 5))
    token0, head0 = row_of(warp_row + slot, rows, group)
    token1, head1 = row_of(warp_row + slot + 8, rows, group)
    limit0, limit1 = I(position + token0), I(position + token1)
    warp_limit = I(position + row_of(warp_row, rows, group)[0])
    tiles = I(p.divide_u(U(position + row_of(first_row + {_ROWS - 1}, rows, group)[0]), U({positions})) + 1)
    shared = p.shared_address(p.address_of(cuda.shared.array({2 * _STAGE_BYTES // 4}, dtype=U)))
    state = begin({parts}, kv_head, capacity, thread, I(position + tokens - 1))
    raw = start(state, shared, I(0))
    finish(state, shared, raw)
{_indented(_queries(head_dim) + zeros, 1)}
    maximum0 = maximum1 = F(-INFINITY)
    total0 = total1 = F(0)
    key_lane = U({row_bytes} * slot + 16 * part)
    swizzle = U(16 * ((lane >> 4) ^ (lane & 7)))
    value_lane = U({TILE_BYTES} + {row_bytes} * (lane & 15))
    for tile in range(tiles):
        arrived()
        cuda.syncthreads()
        now = U(shared + U(U(tile & 1) * U({_STAGE_BYTES})))
        then = U(shared + U(U((tile + 1) & 1) * U({_STAGE_BYTES})))
        raw = start(state, then, p.min_i(I(tile + 1), I(tiles - 1)))
        even_keys = U(U(now + key_lane) + U(64 * (slot & 1)))
        odd_keys = U(U(now + key_lane) + U(64 - 64 * (slot & 1)))
        values_at = U(now + value_lane)
        first, own = I(tile * {positions}), I(tile * {positions} + 2 * part)
{_indented(_scores(head_dim, target), 2)}
{_indented(_softmax(head_dim), 2)}
{_indented(_weighted(head_dim, target), 2)}
        finish(state, then, raw)
{_indented(transform + _results(head_dim, unit), 1)}"""


def _arrival(asynchronous: bool) -> Any:
    """Return the function that waits until this thread's copies have arrived."""
    if not asynchronous:
        return device(lambda: None)

    @device
    def arrived():
        p.copy_commit()
        p.copy_wait0()

    return arrived


def _kernel(name: str, head_dim: int, parts: tuple[str, ...], copy: TileCopy, target: int) -> Kernel:
    asynchronous = target >= 80 and len(parts) == 2
    pack = device(lambda low, high: p.pack_f16x2(high, low)) if target >= 80 else p.pair_of
    names = {"A": A, "F": F, "I": I, "U": U, "cuda": cuda, "p": p, "pack": pack, "arrived": _arrival(asynchronous)}
    names |= {"row_of": _row, "quad_max": _quad_max, "quad_sum": _quad_sum, "across_lanes": _across_lanes}
    names |= {"store_pair": _store_pair, "INFINITY": _INFINITY, "INVERSE_32": _INVERSE_32}
    names |= {"begin": copy.begin, "start": copy.start, "finish": copy.finish}
    function = define(_source(name, head_dim, ", ".join(parts), target), name, names)
    blocks_per_sm = 3 if asynchronous else 2
    return Kernel(function, "l" * (len(parts) + 4) + "iii", THREADS, blocks_per_sm)


def units(target: int) -> list[Unit]:
    """Return the unit `prefill_attention`: `prefill_attention_{f16,q8}_d{64,128}`.

    Grid: kv_heads * ceil(tokens * heads / kv_heads / 64) blocks; the last tokens come first. Parameters:
        queries: (tokens, heads, head_dim) f16, by `rope_append`.
        keys, key_scales, values, value_scales: the cache, which has these tokens, as in `rope_append`.
        step: tokens and position of the first.
        xh: (tokens, heads * head_dim) f16 in the order of `gemm`, written.
        xf: (tokens) f32, written: 1.
        heads, kv_heads, capacity: as in `rope_append`.
    """
    kernels = []
    for dim in _HEAD_DIMS:
        halves, codes = half_tiles(dim, target >= 80), code_tiles(dim)
        kernels.append(_kernel(f"prefill_attention_f16_d{dim}", dim, ("keys", "values"), halves, target))
        scaled = ("keys", "key_scales", "values", "value_scales")
        kernels.append(_kernel(f"prefill_attention_q8_d{dim}", dim, scaled, codes, target))
    return [Unit("prefill_attention", tuple(kernels))]
