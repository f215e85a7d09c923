"""Kernels of prefill that prepare the operands of a GEMM: RMSNorm and SwiGLU.

An operand is `xh` (tokens, columns) f16 in the order of `gemm`, and `xf` (tokens) f32: powers of two that bring the
largest magnitude of each row into [2^14, 2^15]. So nothing overflows, however large the row, and values down to 2^-28
of the largest keep the precision of f16.
"""

from __future__ import annotations

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

_THREADS = 256
_WARPS = _THREADS // 32
_LOG2_E = np.float32(1.44269504)
_TOP_EXPONENT = 14


@device
def _warp_sum(x):
    """Return the sum over the lanes of a warp."""
    x += p.shuffle_xor_f(x, U(16))
    x += p.shuffle_xor_f(x, U(8))
    x += p.shuffle_xor_f(x, U(4))
    x += p.shuffle_xor_f(x, U(2))
    return x + p.shuffle_xor_f(x, U(1))


@device
def _warp_max(x):
    """Return the maximum over the lanes of a warp; NaN is ignored."""
    x = p.max_f(x, p.shuffle_xor_f(x, U(16)))
    x = p.max_f(x, p.shuffle_xor_f(x, U(8)))
    x = p.max_f(x, p.shuffle_xor_f(x, U(4)))
    x = p.max_f(x, p.shuffle_xor_f(x, U(2)))
    return p.max_f(x, p.shuffle_xor_f(x, U(1)))


@device
def _block_sum_and_max(total, largest):
    """Return the sum and the maximum over the threads of a block."""
    shared = cuda.shared.array((2, _WARPS), dtype=F)
    total, largest = _warp_sum(total), _warp_max(largest)
    if cuda.threadIdx.x & 31 == 0:
        shared[0, cuda.threadIdx.x >> 5] = total
        shared[1, cuda.threadIdx.x >> 5] = largest
    cuda.syncthreads()
    total, largest = F(0), F(0)
    for warp in range(_WARPS):
        total += shared[0, warp]
        largest = p.max_f(largest, shared[1, warp])
    return total, largest


@device
def _factors(largest):
    """Return the power of two of a row with that largest magnitude, and its inverse."""
    field = U(p.max_i(I(p.bits_of(largest) >> U(23)), I(_TOP_EXPONENT + 1)) - I(_TOP_EXPONENT))
    return p.float_of_bits(U(field << U(23))), p.float_of_bits(U(U(U(254) - field) << U(23)))


@device
def _store_8(at, low, high, inverse):
    """Store 8 columns, times `inverse`, in the order 0, 4, 1, 5, 2, 6, 3, 7."""
    p.store4(
        at,
        p.pair_of(low[0] * inverse, high[0] * inverse),
        p.pair_of(low[1] * inverse, high[1] * inverse),
        p.pair_of(low[2] * inverse, high[2] * inverse),
        p.pair_of(low[3] * inverse, high[3] * inverse),
    )


@device
def _largest_4(largest, x):
    """Return the largest of `largest` and four magnitudes."""
    return p.max_f(p.max_f(p.max_f(p.max_f(largest, p.abs_f(x[0])), p.abs_f(x[1])), p.abs_f(x[2])), p.abs_f(x[3]))


@device
def _multiplied(x, y):
    """Return the products of four pairs."""
    return x[0] * y[0], x[1] * y[1], x[2] * y[2], x[3] * y[3]


@device
def _squares(x):
    """Return the sum of four squares."""
    return (x[0] * x[0] + x[1] * x[1]) + (x[2] * x[2] + x[3] * x[3])


def norm_rows_f16(residual, weight, xh, xf, columns, epsilon):
    """Write RMSNorm of each row as an operand.

    Grid: one block per token.

    Args:
        residual: (tokens, columns) f32.
        weight: (columns) f32.
        xh: (tokens, columns) f16, written.
        xf: (tokens) f32, written.
        columns: a multiple of 32.
        epsilon: added to the mean square.
    """
    row = A(cuda.blockIdx.x) * A(columns)
    x_at, out = residual + A(4) * row, xh + A(2) * row
    total, largest = F(0), F(0)
    for column in range(8 * I(cuda.threadIdx.x), columns, 8 * _THREADS):
        at, weight_at = x_at + A(4 * column), weight + A(4 * column)
        low, high = p.read4f(at), p.read4f(at + A(16))
        total += _squares(low) + _squares(high)
        largest = _largest_4(largest, _multiplied(p.load4f_cached(weight_at), low))
        largest = _largest_4(largest, _multiplied(p.load4f_cached(weight_at + A(16)), high))
    total, largest = _block_sum_and_max(total, largest)
    root = p.div(F(1), p.sqrt(p.div(total, F(columns)) + epsilon))
    factor, inverse = _factors(largest * root)
    if cuda.threadIdx.x == 0:
        p.store1f(xf + A(4) * A(cuda.blockIdx.x), factor)
    both = root * inverse
    for column in range(8 * I(cuda.threadIdx.x), columns, 8 * _THREADS):
        at, weight_at = x_at + A(4 * column), weight + A(4 * column)
        low = _multiplied(p.load4f_cached(weight_at), p.read4f(at))
        high = _multiplied(p.load4f_cached(weight_at + A(16)), p.read4f(at + A(16)))
        _store_8(out + A(2 * column), low, high, both)


@device
def _silu(gate, up):
    """Return gate * sigmoid(gate) * up."""
    return gate * p.rcp_approx(F(1) + p.ex2_approx(-gate * _LOG2_E)) * up


@device
def _silu_4(gate_at, up_at):
    """Return SwiGLU of four columns."""
    gate, up = p.read4f(gate_at), p.read4f(up_at)
    return _silu(gate[0], up[0]), _silu(gate[1], up[1]), _silu(gate[2], up[2]), _silu(gate[3], up[3])


def silu_f16(gate, up, xh, xf, columns, stride):
    """Write gate * sigmoid(gate) * up of each row as an operand.

    Grid: one block per token.

    Args:
        gate: (tokens, columns) f32, `stride` floats from row to row.
        up: as `gate`.
        xh: (tokens, columns) f16, written.
        xf: (tokens) f32, written.
        columns: a multiple of 32.
        stride: a multiple of 4.
    """
    row = A(4) * A(cuda.blockIdx.x) * A(stride)
    out = xh + A(2) * A(cuda.blockIdx.x) * A(columns)
    largest = F(0)
    for column in range(8 * I(cuda.threadIdx.x), columns, 8 * _THREADS):
        gate_at, up_at = gate + row + A(4 * column), up + row + A(4 * column)
        largest = _largest_4(largest, _silu_4(gate_at, up_at))
        largest = _largest_4(largest, _silu_4(gate_at + A(16), up_at + A(16)))
    _, largest = _block_sum_and_max(F(0), largest)
    factor, inverse = _factors(largest)
    if cuda.threadIdx.x == 0:
        p.store1f(xf + A(4) * A(cuda.blockIdx.x), factor)
    for column in range(8 * I(cuda.threadIdx.x), columns, 8 * _THREADS):
        gate_at, up_at = gate + row + A(4 * column), up + row + A(4 * column)
        low, high = _silu_4(gate_at, up_at), _silu_4(gate_at + A(16), up_at + A(16))
        _store_8(out + A(2 * column), low, high, inverse)


def units(target: int) -> list[Unit]:
    """Return the unit `prefill_rows`."""
    kernels = (Kernel(norm_rows_f16, "llllif", _THREADS, 4), Kernel(silu_f16, "llllii", _THREADS, 4))
    return [Unit("prefill_rows", kernels)]
