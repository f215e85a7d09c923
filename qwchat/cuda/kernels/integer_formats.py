"""Arithmetic of the integer formats on a GPU: from stored codes to integer dot products, and from those to float sums.

A group of 32 columns of a tile is stored as lines of 64 bytes: 16 rows × 8 columns of 4 bits, or 16 rows × 4 columns
of 8 bits. A lane loads 16 bytes of a line: one 32-bit word of each of 4 rows (a *quad* of rows). Every format computes

    total += scale * x_scale * (sum(level[code] * x8) - zero * sum(x8))

with exact integers up to the conversion to float32, and one fused multiply-add.

4-bit codes with a table are looked up by byte permutation (PRMT). `prmt(low, q)` returns the table's entry for codes
below 8, and the sign of an entry, eight times, for the others. With entries 0–7 negative and entries 8–15 not,

    prmt(table[0:8], q)                  code < 8: table[code];  code >= 8: -1
    prmt(table[8:16] + 1, q ^ 0x888…)    code < 8: 0;            code >= 8: table[code] + 1

so the sum of both is the entry, and two dot products replace a selection. `look_up_words` checks the property. PRMT
returns columns 0, 4, 1, 5 and 2, 6, 3, 7 of a word (*look-up order*), so activations are read in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from quant.formats import IntegerFormat
from quant.formats.format import TILE_ROWS
from quant.formats.integer import NIBBLE_BITS
from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, F, I, U, device

BLOCK = 32
"""Columns of activations that share a scale."""
_MIDDLE = 128


@dataclass(frozen=True)
class Arithmetic:
    """Device functions and sizes of one integer format.

    Attributes:
        table: Words of the table for dot products and for tensor cores, or None.
        look_up: Whether activations are needed in look-up order, not in plain order.
        block_bytes: Bytes of the codes of a tile's 32 columns.
        scale_bytes: Bytes of the scales of a tile's group.
        row_scales: Whether rows have scales.
        scale_per_block: Whether every 32 columns have a scale, so that `scale_shift` is 0.
        load_block: `codes -> words` of 4 rows × 32 columns.
        operands: `table, words, row -> operands` of a row for `dot`; there is one function per row of the quad.
        dot: `operands, x, start -> sum` with the 8 words of 32 activations.
        load_fragment: `codes -> words` of 4 rows × 8 columns.
        fragment: `table, words, row -> low, high`, the bytes of 8 columns for tensor cores, in the order of x.
        signed: Whether the bytes of `fragment` are signed.
        sums: `sum of x -> (start, correction)`: where an integer sum starts, and the factor of a row's correction.
        load_scales: `scales, zeros, group -> raw` scales and zero points of 4 rows; `zeros` may be 0.
        scale_of: `raw -> (scale, correction)` of a row; one function per row of the quad.
        term: `(scale, correction), dot, factor of the correction, scale of x, total -> total`.
    """

    table: tuple[tuple[int, ...], tuple[int, ...]] | None
    look_up: bool
    block_bytes: int
    scale_bytes: int
    row_scales: bool
    scale_per_block: bool
    load_block: Any
    operands: tuple[Any, ...]
    dot: Any
    load_fragment: Any
    fragment: tuple[Any, ...]
    signed: bool
    sums: Any
    load_scales: Any
    scale_of: tuple[Any, ...]
    term: Any


def look_up_words(table: tuple[int, ...]) -> tuple[int, ...]:
    """Return the four words for the look-up without selection.

    Args:
        table: 16 levels, 0..255; 128 is subtracted.

    Raises:
        ValueError: Entries 0–7 are not all negative, entries 8–15 are negative, or one of those exceeds 126.
    """
    signed = np.array(table, np.int16) - _MIDDLE
    if signed[:8].max() >= 0 or signed[8:].min() < 0 or signed[8:].max() >= 127:
        raise ValueError(f"the look-up needs negative entries 0-7 and entries 8-15 in 0..126, not {signed.tolist()}")
    signed[8:] += 1
    return _words(signed)


def arithmetic(fmt: IntegerFormat) -> Arithmetic:
    """Return the arithmetic of a format.

    Raises:
        ValueError: There are no kernels for such a format.
    """
    nibbles, table = fmt.stored_bits == NIBBLE_BITS, None
    if fmt.table is not None:
        table = (look_up_words(fmt.table), _words(np.array(fmt.table, np.int16) - _MIDDLE))
    rows = range(4)
    sums, load_scales, scale_of, term = _scaling(fmt)
    return Arithmetic(
        table=table,
        look_up=table is not None,
        block_bytes=TILE_ROWS * BLOCK * fmt.stored_bits // 8,
        scale_bytes=TILE_ROWS * fmt.scale_dtype.itemsize,
        row_scales=fmt.row_scales,
        scale_per_block=fmt.group_sizes == (BLOCK,),
        load_block=_load_nibble_block if nibbles else _load_byte_block,
        operands=tuple(_operands(nibbles, table is not None, row) for row in rows),
        dot=_dot_split if table else _dot_bytes,
        load_fragment=_load_nibble_fragment if nibbles else _load_byte_fragment,
        fragment=tuple(_fragment(nibbles, table is not None, row) for row in rows),
        signed=table is not None,
        sums=sums,
        load_scales=load_scales,
        scale_of=scale_of,
        term=term,
    )


def tile_scales(fmt: Arithmetic) -> Any:
    """Return a device function: addresses of the scales and zero points of a quad of rows; 0 without zero points."""
    scale_bytes = fmt.scale_bytes

    @device
    def addresses(scales, zeros, tile, groups, quad):
        first = A(tile) * A(groups)
        if zeros != A(0):
            zeros = zeros + first * A(16) + A(4) * A(quad)
        return scales + first * A(scale_bytes) + A(scale_bytes // 4) * A(quad), zeros

    return addresses


def _words(entries: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Return signed bytes as little-endian words."""
    return tuple(int(word) for word in entries.astype(np.int8).view(np.uint32))


# Loads: `at` is the address of the block's codes plus 16 bytes per quad.


@device
def _load_nibble_block(at):
    return p.load4(at), p.load4(at + A(64)), p.load4(at + A(128)), p.load4(at + A(192))


@device
def _load_byte_block(at):
    return _load_nibble_block(at), _load_nibble_block(at + A(256))


@device
def _load_nibble_fragment(at, line):
    return p.load4(at + A(64) * A(line))


@device
def _load_byte_fragment(at, line):
    first = at + A(128) * A(line)
    return p.load4(first), p.load4(first + A(64))


# Dot products.

_FLIP, _LOW_NIBBLES = np.uint32(0x88888888), np.uint32(0x0F0F0F0F)
_FOUR, _SIXTEEN = np.uint32(4), np.uint32(16)


@device
def _split(table, q):
    """Return the look-ups of 8 codes: columns 0, 4, 1, 5 in two parts, then columns 2, 6, 3, 7."""
    low0, low1, high0, high1 = table
    flipped = U(q ^ _FLIP)
    return (
        p.prmt(low0, low1, q),
        p.prmt(high0, high1, flipped),
        p.prmt(low0, low1, U(q >> _SIXTEEN)),
        p.prmt(high0, high1, U(flipped >> _SIXTEEN)),
    )


@device
def _nibbles(q):
    """Return 8 codes in order."""
    return U(q & _LOW_NIBBLES), U(U(q >> _FOUR) & _LOW_NIBBLES)


def _operands(nibbles: bool, has_table: bool, row: int) -> Any:
    if has_table:

        @device
        def operands(table, words):
            a, b, c, d = words
            return _split(table, a[row]) + _split(table, b[row]) + _split(table, c[row]) + _split(table, d[row])

    elif nibbles:

        @device
        def operands(table, words):
            a, b, c, d = words
            return _nibbles(a[row]) + _nibbles(b[row]) + _nibbles(c[row]) + _nibbles(d[row])

    else:

        @device
        def operands(table, words):
            (a, b, c, d), (e, f, g, h) = words
            return a[row], b[row], c[row], d[row], e[row], f[row], g[row], h[row]

    return operands


@device
def _dot_split(w, x, start):
    a = p.dp4a_ss(w[1], x[0], p.dp4a_ss(w[0], x[0], start))
    a = p.dp4a_ss(w[3], x[1], p.dp4a_ss(w[2], x[1], a))
    a = p.dp4a_ss(w[5], x[2], p.dp4a_ss(w[4], x[2], a))
    a = p.dp4a_ss(w[7], x[3], p.dp4a_ss(w[6], x[3], a))
    a = p.dp4a_ss(w[9], x[4], p.dp4a_ss(w[8], x[4], a))
    a = p.dp4a_ss(w[11], x[5], p.dp4a_ss(w[10], x[5], a))
    a = p.dp4a_ss(w[13], x[6], p.dp4a_ss(w[12], x[6], a))
    return p.dp4a_ss(w[15], x[7], p.dp4a_ss(w[14], x[7], a))


@device
def _dot_bytes(w, x, start):
    a = p.dp4a_us(w[1], x[1], p.dp4a_us(w[0], x[0], start))
    a = p.dp4a_us(w[3], x[3], p.dp4a_us(w[2], x[2], a))
    a = p.dp4a_us(w[5], x[5], p.dp4a_us(w[4], x[4], a))
    return p.dp4a_us(w[7], x[7], p.dp4a_us(w[6], x[6], a))


# Fragments for tensor cores.

_EVEN, _TOP_BITS, _CHOICE, _ONE = (np.uint32(bits) for bits in (0x77777777, 0x44444444, 0x32103210, 1))


@device
def _look_up(table, q):
    """Return the entries of columns 0, 4, 1, 5 and of columns 2, 6, 3, 7; `table` is not changed for `_split`."""
    t0, t1, t2, t3 = table
    below = U(q & _EVEN)
    choice = U(U(U(q >> _ONE) & _TOP_BITS) | _CHOICE)
    first = p.prmt(p.prmt(t0, t1, below), p.prmt(t2, t3, below), choice)
    below = U(below >> _SIXTEEN)
    return first, p.prmt(p.prmt(t0, t1, below), p.prmt(t2, t3, below), U(choice >> _SIXTEEN))


def _fragment(nibbles: bool, has_table: bool, row: int) -> Any:
    if has_table:
        return device(lambda table, words: _look_up(table, words[row]))
    if nibbles:
        return device(lambda table, words: _nibbles(words[row]))
    return device(lambda table, words: (words[0][row], words[1][row]))


# Scales. `scales` and `zeros` are addresses of a tile's parts plus the bytes of the quad.


def _scaling(fmt: IntegerFormat) -> tuple[Any, Any, tuple[Any, ...], Any]:
    """Return `sums`, `load_scales`, the four `scale_of`, and `term`."""
    if fmt.shift:
        shift = fmt.shift
        sums = device(lambda x_sum: (I(0), I(shift * x_sum)))
        return sums, _load_byte_scales, tuple(_table_bit_scale(row) for row in range(4)), _int_term
    if fmt.scale == "uint8" and not fmt.allows_zeros:
        zero = -fmt.zero
        sums = device(lambda x_sum: (I(zero * x_sum), I(0)))
        return sums, _load_byte_scales, tuple(_byte_scale(row) for row in range(4)), _plain_int_term
    if fmt.scale == "float16":
        load = _load_half_scales(fmt.zero * 0x01010101)
        sums = device(lambda x_sum: (I(0), I(-x_sum)))
        return sums, load, tuple(_half_scale(row) for row in range(4)), _float_term
    raise ValueError(f"no kernels for the scales of format {fmt.name}")


@device
def _load_byte_scales(scales, zeros, group):
    return p.load1(scales + A(16) * A(group))


def _table_bit_scale(row: int) -> Any:
    sign_extended = row | (row | 8) * 0x1110

    @device
    def scale_of(raw):
        byte = I(p.prmt(raw, raw, U(sign_extended)))
        return I(byte >> I(1)), I(byte & I(1))

    return scale_of


def _byte_scale(row: int) -> Any:
    return device(lambda raw: (_byte(raw, U(0x4440 | row)), I(0)))


@device
def _byte(word, selector):
    """Return the byte that `selector` takes from `word`, with zeros above it."""
    return I(p.prmt(word, U(0), selector))


def _load_half_scales(default_zeros: int) -> Any:
    @device
    def load_scales(scales, zeros, group):
        low, high = p.load2(scales + A(32) * A(group))
        words = U(default_zeros)
        if zeros != A(0):
            words = p.load1(zeros + A(16) * A(group))
        return low, high, words

    return load_scales


def _half_scale(row: int) -> Any:
    pair, upper, selector = row // 2, row % 2, 0x4440 | row

    @device
    def scale_of(raw):
        return p.floats_of_pair(raw[pair])[upper], _byte(raw[2], U(selector))

    return scale_of


@device
def _int_term(scale, dot, correction, x_scale, total):
    return p.fma(F(I(scale[0] * I(dot + I(scale[1] * correction)))), x_scale, total)


@device
def _plain_int_term(scale, dot, correction, x_scale, total):
    return p.fma(F(I(scale[0] * dot)), x_scale, total)


@device
def _float_term(scale, dot, correction, x_scale, total):
    return p.fma(F(I(dot + I(scale[1] * correction))), F(scale[0] * x_scale), total)
