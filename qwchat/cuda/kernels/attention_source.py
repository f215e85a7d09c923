"""Source text of device functions for decode attention: what a warp does with 16 positions.

Each register is a local of its own, so the text is made for each shape; registers are handed on as tuples.

A lane is (g, c) = (lane // 4, lane % 4). Scores of 16 query rows and 16 positions take two products per group of
elements; a lane gets the rows g and g + 8, and the positions 2c, 2c + 1, 2c + 8 and 2c + 9. These are the weights that
the second product wants from it, so nothing is moved between lanes. Element order within a product is free, as long
as queries and keys agree, so keys and values are loaded 16 bytes a lane and used where they are:

- keys: lane (g, c) loads the bytes 16c … of the positions g and g + 8, every 64 bytes;
- values: lane (g, c) loads the dimensions that start at 16 bytes · g (8 bytes · g in an 8-bit cache of 64 dimensions)
  of its four positions, and pairs those of two positions by byte permutations.

Values of an 8-bit cache become halves exactly: 0x4800 | (code + 128) is 9 + code / 128 in f16. Then they are multiplied
by the scale, so they are smaller by 128 and cannot overflow; the merge undoes that. Weights are 2^(score − exponent)
with exponent = largest score − 15, so that a long tail of small weights does not vanish in f16. What a half rounds off
a weight or a value is a half of its own, which takes part: 22 bits count.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP_POSITIONS = 16


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for.

    Attributes:
        kind: `f16` or `q8`.
        head_dim: 64 or 128.
    """

    kind: str
    head_dim: int

    @property
    def blocks(self) -> int:
        """Groups of 32 elements."""
        return self.head_dim // 32

    @property
    def row_bytes(self) -> int:
        """Bytes of a key or value of one position."""
        return self.head_dim * (1 if self.kind == "q8" else 2)

    @property
    def scale_bytes(self) -> int:
        """Bytes of a position's scales in an 8-bit cache."""
        return 2 * self.blocks

    @property
    def tiles(self) -> int:
        """Products per 16 positions, of eight dimensions each."""
        return self.head_dim // 8

    @property
    def value_words(self) -> int:
        """Words that a lane loads of a position's value at once."""
        return min(4, self.row_bytes // 32)

    def dimension(self, tile: int) -> tuple[int, int]:
        """Return (factor, offset): column n of a tile is dimension factor · n + offset."""
        if self.kind == "q8":
            return 4 * self.value_words, tile
        return 8, 64 * (tile // 8) + tile % 8

    @property
    def accumulators(self) -> list[str]:
        """Names of the weighted sums, in the order of their words."""
        return [f"o{tile}_{r}" for tile in range(self.tiles) for r in range(4)]

    @property
    def key_words(self) -> list[str]:
        """Names of the words of keys that a lane loads: position, 64 bytes, word."""
        return [f"k{n}_{chunk}_{word}" for n in (0, 1) for chunk in range(self.row_bytes // 64) for word in range(4)]

    @property
    def values(self) -> list[str]:
        """Names of the words of values that a lane loads: position, word."""
        return [f"a{v}_{word}" for v in range(4) for word in range(self.row_bytes // 32)]

    @property
    def scale_words(self) -> list[str]:
        """Names of the words of scales that a lane loads: pair of positions, word."""
        return [f"x{pair}_{word}" for pair in (0, 1) for word in range(self.blocks)]


def function_texts(shape: Shape) -> dict[str, str]:
    """Return the source of the device functions of a shape, by name."""
    texts = {
        "load_keys": (["key0", "key1", "c"], _load_keys(shape)),
        "load_values": (["value0", "value1", "value2", "value3", "g"], _load_values(shape)),
        "load_own_scales": (["scales0", "scales1", "scales2", "scales3"], _load_own_scales(shape)),
        "score": (["keys", "scales", "fragments", "steps", "g", "lane"], _score(shape)),
        "scale_sums": (["sums", "factor0", "factor1"], _scale_sums(shape)),
        "add_values": (["sums", "values", "scale0", "scale1", "weights"], _add_values(shape, masked=False)),
        "add_own_values": (
            ["sums", "values", "scale0", "scale1", "weights", "mine0", "mine1"],
            _add_values(shape, masked=True),
        ),
        "load_scales": (["scales", "pair0", "pair1"], _load_scales(shape)),
        "scales_of_values": (["words", "g"], _value_scales(shape)),
        "store_sums": (["sums", "at"], _store_sums(shape)),
        "add_stored_sums": (["sums", "at"], _add_stored_sums(shape)),
    }
    return {
        name: "\n".join([f"def {name}({', '.join(parameters)}):", *("    " + line for line in lines)])
        for name, (parameters, lines) in texts.items()
    }


def _tuple(names: list[str]) -> str:
    return f"({', '.join(names)})"


def _load_keys(shape: Shape) -> list[str]:
    lines = [f"at{n} = key{n} + A(U(16 * c))" for n in (0, 1)]
    for start in range(0, len(shape.key_words), 4):
        words = shape.key_words[start : start + 4]
        lines.append(f"{', '.join(words)} = p.read4_once(at{words[0][1]} + A({64 * int(words[0][3])}))")
    return [*lines, f"return {_tuple(shape.key_words)}"]


def _load_values(shape: Shape) -> list[str]:
    count = shape.value_words
    stride = 8 * 4 * count  # bytes that the eight lanes of a position load together
    lines = [f"at{v} = value{v} + A(U({4 * count} * g))" for v in range(4)]
    for start in range(0, len(shape.values), count):
        words = shape.values[start : start + count]
        chunk = int(words[0][3:]) // count
        lines.append(f"{', '.join(words)} = p.read{count}_once(at{words[0][1]} + A({stride * chunk}))")
    return [*lines, f"return {_tuple(shape.values)}"]


def _load_scales(shape: Shape) -> list[str]:
    if shape.kind != "q8":
        return ["return U(0), U(0)"]
    lines, count = [], shape.blocks
    for pair in (0, 1):
        words = shape.scale_words[count * pair : count * pair + count]
        lines.append(f"{', '.join(words)} = p.read{count}(scales + A(U(pair{pair})) * A({shape.scale_bytes}))")
    return [*lines, f"return {_tuple(shape.scale_words)}"]


def _load_own_scales(shape: Shape) -> list[str]:
    """Return what `load_scales` does, for four positions at addresses of their own."""
    if shape.kind != "q8":
        return ["return U(0), U(0)"]
    lines, count = [], shape.blocks // 2
    for place in range(4):
        words = shape.scale_words[count * place : count * place + count]
        lines.append(f"{', '.join(words)} = p.read{count}(scales{place})")
    return [*lines, f"return {_tuple(shape.scale_words)}"]


def _fragment(name: str, index: int) -> str:
    words = ", ".join(f"{name}{word}" for word in range(4))
    return f"{words} = p.shared_load4(U(fragments + U({512 * index}) + lane * U(16)))"


def _score(shape: Shape) -> list[str]:
    """Return the lane's eight scores: positions 2c and 2c + 1 of rows g and g + 8, then 2c + 8 and 2c + 9."""
    lines = [f"{_tuple(shape.key_words)} = keys", " = ".join(f"s{i}" for i in range(8)) + " = F(0)"]
    lines += _score_q8(shape) if shape.kind == "q8" else _score_f16(shape)
    return [*lines, f"return {_tuple([f's{i}' for i in range(8)])}"]


def _score_q8(shape: Shape) -> list[str]:
    """Integer products of each group of 32 elements; scaled by the scales of query and key, and added."""
    lines, words = [f"{_tuple(shape.scale_words)} = scales"], shape.blocks // 2
    for pair, word in [(pair, word) for pair in range(4) for word in range(words)]:
        source = f"x{pair >> 1}_{(pair & 1) * words + word}"
        lines.append(f"y{pair}_{2 * word}, y{pair}_{2 * word + 1} = p.floats_of_pair({source})")
    for block in range(shape.blocks):
        lines += [_fragment("f", 2 * block), _fragment("h", 2 * block + 1)]
        for r in (0, 1):
            at = f"U(steps + U({4 * block}) + U(g + {8 * r}) * U({4 * shape.blocks}))"
            lines.append(f"q{r} = p.shared_load1f({at})")
        for n in (0, 1):
            k = [f"k{n}_{block // 2}_{word}" for word in range(4)]
            lines.append(f"d0, d1, d2, d3 = mma_s8(f0, f1, f2, f3, {k[0]}, {k[1]}, ROUNDER, ROUNDER, ROUNDER, ROUNDER)")
            lines.append(f"d0, d1, d2, d3 = mma_s8(h0, h1, h2, h3, {k[2]}, {k[3]}, d0, d1, d2, d3)")
            for r in range(4):
                scale, query = f"y{2 * n + (r & 1)}_{block}", f"q{r >> 1}"
                lines.append(f"s{4 * n + r} = p.fma(exact(d{r}) * {scale}, {query}, s{4 * n + r})")
    return lines


def _score_f16(shape: Shape) -> list[str]:
    """Products of both halves of the queries; times the powers of two that the queries were divided by."""
    lines = []
    for block in range(shape.blocks):
        for part in (0, 1):
            index = 2 * (2 * block + part)
            lines += [_fragment("f", index), _fragment("h", index + 1)]
            for n in (0, 1):
                s = ", ".join(f"s{4 * n + r}" for r in range(4))
                k = f"k{n}_{block}_{2 * part}, k{n}_{block}_{2 * part + 1}"
                lines += [f"{s} = mma_f16({name}0, {name}1, {name}2, {name}3, {k}, {s})" for name in "fh"]
    lines += [f"q{r} = p.shared_load1f(U(steps + U(g + {8 * r}) * U(4)))" for r in (0, 1)]
    return lines + [f"s{i} = s{i} * q{i >> 1 & 1}" for i in range(8)]


def _scale_sums(shape: Shape) -> list[str]:
    scaled = [f"{name} * factor{int(name[-1]) >> 1}" for name in shape.accumulators]
    return [f"{_tuple(shape.accumulators)} = sums", f"return {_tuple(scaled)}"]


def _value_scales(shape: Shape) -> list[str]:
    """Return the scales of the lane's dimensions: a pair of halves for each pair of positions."""
    if shape.kind != "q8":
        return ["return words"]
    lines = [f"{_tuple(shape.scale_words)} = words"]
    for pair in (0, 1):
        x = [f"x{pair}_{word}" for word in range(shape.blocks)]
        bit = 4
        if shape.blocks == 4:
            lines.append(f"first, second = ({x[1]}, {x[3]}) if g & 4 else ({x[0]}, {x[2]})")
            x, bit = ["first", "second"], 2
        lines.append(f"scale{pair} = p.prmt({x[0]}, {x[1]}, U(0x7632) if g & {bit} else U(0x5410))")
    return [*lines, "return scale0, scale1"]


def _add_values(shape: Shape, masked: bool) -> list[str]:
    """Add weights times values to the sums; if `masked`, only to those of the rows of one token."""
    lines = [f"{_tuple(shape.accumulators)} = sums", f"{_tuple(shape.values)} = values"]
    lines.append("w0, w1, w2, w3, r0, r1, r2, r3 = weights")
    per_word = 4 if shape.kind == "q8" else 2
    for tile in range(shape.tiles):
        i = tile % per_word
        if i == 0:
            lines += (_halves_q8 if shape.kind == "q8" else _halves_f16)(tile // per_word)
        names = [f"o{tile}_{r}" for r in range(4)]
        out = ["d0", "d1", "d2", "d3"] if masked else names
        lines.append(f"{', '.join(out)} = mma_f16(r0, r1, r2, r3, b{i}_0, b{i}_1, {', '.join(names)})")
        if shape.kind == "q8":
            lines.append(f"{', '.join(out)} = mma_f16(w0, w1, w2, w3, c{i}_0, c{i}_1, {', '.join(out)})")
        lines.append(f"{', '.join(out)} = mma_f16(w0, w1, w2, w3, b{i}_0, b{i}_1, {', '.join(out)})")
        if masked:
            lines += [f"{name} = d{r} if mine{r >> 1} else {name}" for r, name in enumerate(names)]
    return [*lines, f"return {_tuple(shape.accumulators)}"]


def _halves_q8(word: int) -> list[str]:
    """Four dimensions of the lane's four positions: pairs b0_0 to b3_1, and what these round off, c0_0 to c3_1."""
    lines = [f"e{v} = U(a{v}_{word} ^ U(0x80808080))" for v in range(4)]
    for half in (0, 1):
        for pair, selector in ((0, "0x5140"), (1, "0x7362")):
            lines.append(f"x = p.prmt(e{2 * half}, e{2 * half + 1}, U({selector}))")
            for i, bytes_of in ((2 * pair, "0x4140"), (2 * pair + 1, "0x4342")):
                lines += [
                    f"y = p.sub_f16x2(p.prmt(x, U(0x48484848), U({bytes_of})), U(0x48804880))",
                    f"b{i}_{half} = p.mul_f16x2(y, scale{half})",
                    f"c{i}_{half} = p.rest_f16x2(y, scale{half}, b{i}_{half})",
                ]
    return lines


def _halves_f16(word: int) -> list[str]:
    """Two dimensions of the lane's four positions: pairs b0_0 to b1_1."""
    return [
        f"b{i}_{half} = p.prmt(a{2 * half}_{word}, a{2 * half + 1}_{word}, U({selector}))"
        for half in (0, 1)
        for i, selector in ((0, "0x5410"), (1, "0x7632"))
    ]


def _store_sums(shape: Shape) -> list[str]:
    lines = [f"{_tuple(shape.accumulators)} = sums"]
    return lines + [f"p.shared_store1f(U(at + U({128 * i})), {name})" for i, name in enumerate(shape.accumulators)]


def _add_stored_sums(shape: Shape) -> list[str]:
    added = [f"{name} + p.shared_load1f(U(at + U({128 * i})))" for i, name in enumerate(shape.accumulators)]
    return [f"{_tuple(shape.accumulators)} = sums", f"return {_tuple(added)}"]
