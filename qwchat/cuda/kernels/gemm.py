"""Matrix products of prefill: f16 tensor cores, with weights decoded in registers.

A block of 4 warps multiplies 128 rows of weights by 64 tokens; each warp has 32 rows. The activations of 32 columns are
copied to shared memory, from which all warps read them; the weights of the next group are loaded while the tensor cores
work on this one. Sums are f32. `gemm_weights` describes how weights become operands.

Activations: `xh` (tokens, columns) f16 and a factor `xf` (tokens) f32, a power of two; the value is xh * xf. Within 8
columns the order is 0, 4, 1, 5, 2, 6, 3, 7 (`activation_rows`), as in the GEMV's activations.

The result is, for each token and row,
    out = (sum * row_scale) * xf + bias [+ out]
All 16 rows of a tile are written, so `out_stride` includes padding rows.

Activations keep 11 bits, where decode and the CPU round them to 8. Over 400 tokens of the built-in model in q4, the KL
divergence of the logits from those of the same weights in float is 8e-6 on average (1e-3 with an 8-bit cache); that of
the CPU's is 2e-3. So prefill is compared with the float model, not with the CPU.
"""

from __future__ import annotations

from typing import Any

from qwchat.cuda.kernels import gemm_weights
from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.source_text import define
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

ROWS = 128
"""Rows of weights that a block multiplies."""

TOKENS = 64
"""Tokens that a block multiplies."""

_THREADS = 128
_TOKEN_BLOCKS = TOKENS // 8
_STAGE_BYTES = TOKENS * 64
_STAGES = {75: 2, 80: 4, 90: 4}


@device
def _chunk(xh, columns, first_token, tokens, thread):
    """Return the address of 16 bytes of group 0 that this thread copies; tokens beyond the last repeat it."""
    token = p.min_i(I(first_token + I(thread >> 2)), I(tokens - 1))
    return xh + A(2) * A(token) * A(columns) + A(16 * (thread & 3))


@device
def _store_token(out, token, tokens, out_stride, row, xf, accumulate, sums, scales, biases):
    """Write 4 rows of one token, unless it lies beyond the last."""
    if token < tokens:
        factor = p.load1f(xf + A(4) * A(token))
        at = out + A(4) * (A(token) * A(out_stride) + A(row))
        y0, y1 = (sums[0] * scales[0]) * factor + biases[0], (sums[1] * scales[1]) * factor + biases[1]
        y2, y3 = (sums[2] * scales[2]) * factor + biases[2], (sums[3] * scales[3]) * factor + biases[3]
        if accumulate:
            old = p.read4f(at)
            y0, y1, y2, y3 = y0 + old[0], y1 + old[1], y2 + old[2], y3 + old[3]
        p.store4f(at, y0, y1, y2, y3)


def _sums(half: int, block: int) -> list[str]:
    """Return the names of the 4 sums of A operand `half` and token block `block`."""
    return [f"s{half}_{block}_{index}" for index in range(4)]


def _products(target: int) -> list[str]:
    """Return the lines that multiply the weights of a group, `w`, by the activations at shared address `at`."""
    lines = []
    for block in range(_TOKEN_BLOCKS):
        lines.append(f"b0, b1, b2, b3 = p.shared_load4(U(at + U({512 * block})))")
        for half in range(2):
            names, low, high = ", ".join(_sums(half, block)), 8 * half, 8 * half + 4
            if target >= 80:
                for pair in (0, 2):
                    a = f"w[{low + pair}], w[{high + pair}], w[{low + pair + 1}], w[{high + pair + 1}]"
                    lines.append(f"{names} = p.mma_f16({a}, b{pair}, b{pair + 1}, {names})")
            else:
                for pair in range(4):
                    lines.append(f"{names} = p.mma_f16_k8(w[{low + pair}], w[{high + pair}], b{pair}, {names})")
    return lines


def _results() -> list[str]:
    """Return the lines that write the sums of a lane: 4 rows of 16 tokens."""
    lines = []
    for block in range(_TOKEN_BLOCKS):
        for index in range(2):
            sums = [_sums(half, block)[2 * slot + index] for half in range(2) for slot in range(2)]
            lines.append(
                f"store_token(out, I(first_token + I({8 * block + index} + 2 * part)), tokens, out_stride, row, xf, "
                f"accumulate, ({', '.join(sums)}), row_scale, biases)"
            )
    return lines


_ASYNC_FIRST = """
    for group in range(3):
        if group < groups:
            p.copy_async(U(into + U(4096 * group)), first_at + A(64 * group))
            p.copy_async(U(into + U(4096 * group + 2048)), second_at + A(64 * group))
        p.copy_commit()
"""
_ASYNC_NEXT = """
        p.copy_wait2()
        cuda.syncthreads()
        later = I(group + 3)
        if later < groups:
            slot = U(into + U(U(later & 3) << U(12)))
            p.copy_async(slot, first_at + A(64) * A(later))
            p.copy_async(U(slot + U(2048)), second_at + A(64) * A(later))
        p.copy_commit()
        at = U(mine + U(U(group & 3) << U(12)))
"""
_PLAIN_FIRST = """
    x0, x1, x2, x3 = p.read4(first_at)
    z0, z1, z2, z3 = p.read4(second_at)
    p.shared_store4(into, x0, x1, x2, x3)
    p.shared_store4(U(into + U(2048)), z0, z1, z2, z3)
"""
_PLAIN_NEXT = """
        cuda.syncthreads()
        later = A(p.min_i(I(group + 1), last))
        x0, x1, x2, x3 = p.read4(first_at + A(64) * later)
        z0, z1, z2, z3 = p.read4(second_at + A(64) * later)
        at = U(mine + U(U(group & 1) << U(12)))
"""
_PLAIN_AFTER = """
        slot = U(into + U(U((group + 1) & 1) << U(12)))
        p.shared_store4(slot, x0, x1, x2, x3)
        p.shared_store4(U(slot + U(2048)), z0, z1, z2, z3)
"""


def _source(name: str, weights: gemm_weights.WeightFormat, target: int) -> str:
    """Return the text of a kernel. It is generated since each of 64 sums needs a local variable of its own."""
    parts = ", ".join(weights.parts)
    scale_part = "row_scales, " if weights.row_scales else ""
    first, following, after = (
        (_ASYNC_FIRST, _ASYNC_NEXT, "") if target >= 80 else (_PLAIN_FIRST, _PLAIN_NEXT, _PLAIN_AFTER)
    )
    zeros = "".join(
        f"    {' = '.join(_sums(half, block))} = F(0)\n" for half in range(2) for block in range(_TOKEN_BLOCKS)
    )
    products = "".join(f"        {line}\n" for line in _products(target))
    results = "".join(f"        {line}\n" for line in _results())
    row_scale = "p.load4f_cached(row_scales + A(4 * row))" if weights.row_scales else "(F(1), F(1), F(1), F(1))"
    return f"""
def {name}({parts}, {scale_part}bias, xh, xf, out, columns, tiles, tokens, out_stride, accumulate):
    thread = I(cuda.threadIdx.x)
    lane, warp, groups = I(thread & 31), I(thread >> 5), I(columns >> 5)
    token_blocks = U(U(tokens + 63) >> U(6))
    row_block = p.divide_u(U(cuda.blockIdx.x), token_blocks)
    first_token = I(U(U(cuda.blockIdx.x) - U(row_block * token_blocks)) << U(6))
    own_tile = I(I(row_block) * 8 + 2 * warp + (lane >> 4))
    last = I(groups - 1)
    state = begin({parts}, p.min_i(own_tile, I(tiles - 1)), groups, lane)
    shared = p.shared_address(p.address_of(cuda.shared.array({_STAGES[target] * _STAGE_BYTES // 4}, dtype=U)))
    into, mine = U(shared + U(16 * thread)), U(shared + U(16 * lane))
    first_at = chunk(xh, columns, first_token, tokens, thread)
    second_at = chunk(xh, columns, I(first_token + 32), tokens, thread)
{zeros}{first}
    raw = load(state, I(0))
    for group in range(groups):
{following}
        w = halves(state, raw)
        raw = load(state, p.min_i(I(group + 1), last))
{products}{after}
    if own_tile < tiles:
        part, row = I(lane & 3), I(16 * own_tile + 4 * ((lane >> 2) & 3))
        row_scale = {row_scale}
        biases = (F(0), F(0), F(0), F(0))
        if bias != A(0):
            biases = p.load4f_cached(bias + A(4 * row))
{results}"""


def _kernel(name: str, weights: gemm_weights.WeightFormat, target: int) -> Kernel:
    """Return the kernel `gemm_{name}`."""
    names: dict[str, Any] = {"A": A, "F": F, "I": I, "U": U, "cuda": cuda, "p": p}
    names |= {"begin": weights.begin, "load": weights.load, "halves": weights.halves}
    names |= {"chunk": _chunk, "store_token": _store_token}
    function = define(_source(f"gemm_{name}", weights, target), f"gemm_{name}", names)
    signature = weights.letters + "l" * weights.row_scales + "llll" + "iiiii"
    return Kernel(function, signature, _THREADS, weights.blocks_per_sm)


def units(target: int) -> list[Unit]:
    """Return the unit `gemm`: `gemm_{format}` for each format of matrices.

    Grid: ceil(tiles / 8) * ceil(tokens / 64) blocks. Parameters besides the parts of the weights:
        bias: (16 * tiles) f32, or 0.
        xh, xf: activations.
        out: (tokens, out_stride) f32; 16-byte alignment.
        columns: a multiple of 32.
        tiles: of 16 rows.
        tokens: at least 1.
        out_stride: floats from one token to the next, a multiple of 4.
        accumulate: 1 to add to `out`, otherwise 0.
        table: q4's levels, CODEBOOK + 128 as 16 bytes.
        zeros: 0 if the tensor stores no zero points.
        group_shift: log2(group size / 32).
    """
    formats = gemm_weights.weight_formats(target)
    return [Unit("gemm", tuple(_kernel(name, weights, target) for name, weights in formats.items()))]
