"""Instructions of whole warps: shuffles, votes and matrix products, against definitions lane by lane."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.handwritten import SHARED, run

AT = "mul.wide.u32 %d1, thread, 4; add.s64 %d2, p0, %d1; add.s64 %d3, p1, %d1;"
RANDOM = np.random.default_rng(3)
WORDS = RANDOM.integers(0, 2**32, 64, dtype=np.uint64).astype(np.uint32)


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """Return the lane that `shfl` reads, and whether it was in range, by the manual's pseudocode."""
    clamp, mask = c & 31, c >> 8 & 31
    highest, lowest = (lane & mask) | (clamp & ~mask & 31), lane & mask
    other = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~mask & 31)}[mode]
    inside = other >= highest if mode == "up" else other <= highest
    return (other if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [0, 0x18, 0x10])
@pytest.mark.parametrize("other", [0, 1, 3, 16, 31])
def test_shuffles(mode: str, segment: int, other: int) -> None:
    c = segment << 8 | (0 if mode == "up" else 31)
    body = AT + f"ld.global.u32 %r1, [%d2]; shfl.sync.{mode}.b32 %r2|%p1, %r1, {other}, {c}, -1;"
    body += "selp.b32 %r3, 1, 0, %p1; st.global.u32 [%d3], %r2; st.global.u32 [%d2], %r3;"
    inside, got = run(body, WORDS, np.zeros(64, np.uint32), threads=64)
    for thread in range(64):
        lane, valid = shuffled(mode, thread & 31, other, c)
        assert got[thread] == WORDS[thread & 32 | lane]
        assert inside[thread] == valid


def test_a_shuffle_takes_the_lane_from_a_register() -> None:
    body = AT + "ld.global.u32 %r1, [%d2]; mul.lo.u32 %r4, thread, 5; shfl.sync.idx.b32 %r2, %r1, %r4, 31, -1;"
    _, got = run(body + "st.global.u32 [%d3], %r2;", WORDS[:32], np.zeros(32, np.uint32))
    np.testing.assert_array_equal(got, WORDS[np.arange(32) * 5 % 32])


@pytest.mark.interpreter_only
def test_lanes_of_a_part_of_a_warp() -> None:
    body = (
        AT
        + """mov.b32 %r2, 9; setp.ge.s32 %p1, thread, 16; @%p1 bra $rest;
    ld.global.u32 %r1, [%d2]; shfl.sync.bfly.b32 %r2, %r1, 1, 31, {};
$rest:
    st.global.u32 [%d3], %r2;"""
    )
    _, got = run(body.format(0xFFFF), WORDS[:32], np.zeros(32, np.uint32))
    np.testing.assert_array_equal(got, [WORDS[i ^ 1] if i < 16 else 9 for i in range(32)])
    with pytest.raises(RuntimeError, match="lanes 0xffff0000 of the mask do not take part"):
        run(body.format(-1), WORDS[:32], np.zeros(32, np.uint32))
    with pytest.raises(RuntimeError, match="a lane takes part that is not in its mask"):
        run(body.format(0xFF), WORDS[:32], np.zeros(32, np.uint32))


@pytest.mark.interpreter_only
def test_a_shuffle_from_a_lane_that_is_not_there() -> None:
    body = (
        AT
        + """setp.ge.s32 %p1, thread, 16; @%p1 bra $rest;
    ld.global.u32 %r1, [%d2]; shfl.sync.bfly.b32 %r2, %r1, 16, 31, 65535; st.global.u32 [%d3], %r2;
$rest:"""
    )
    with pytest.raises(RuntimeError, match="reads from one that does not take part"):
        run(body, WORDS[:32], np.zeros(32, np.uint32))


def test_lanes_wait_for_each_other_at_a_shuffle() -> None:
    """Half of the lanes take a longer way; the shuffle joins them."""
    body = (
        AT
        + """ld.global.u32 %r1, [%d2]; and.b32 %r3, thread, 1; setp.eq.s32 %p1, %r3, 0; @%p1 bra $join;
    mov.b32 %r4, 0;
$loop:
    add.s32 %r1, %r1, 1; add.s32 %r4, %r4, 1; setp.lt.s32 %p2, %r4, thread; @%p2 bra $loop;
$join:
    shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1; st.global.u32 [%d3], %r2;"""
    )
    for seed in range(3):
        _, got = run(body, WORDS[:32], np.zeros(32, np.uint32), seed=seed)
        own = WORDS[:32] + np.where(np.arange(32) % 2, np.arange(32), 0).astype(np.uint32)
        np.testing.assert_array_equal(got, own[np.arange(32) ^ 1])


def test_votes() -> None:
    body = (
        AT
        + """ld.global.u32 %r1, [%d2]; and.b32 %r1, %r1, 1; setp.eq.s32 %p1, %r1, 1;
    vote.sync.ballot.b32 %r2, %p1, -1; vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, !%p1, -1;
    redux.sync.add.s32 %r3, %r1, -1; activemask.b32 %r4;
    selp.b32 %r5, 1, 0, %p2; selp.b32 %r6, 2, 0, %p3; or.b32 %r5, %r5, %r6;
    st.global.u32 [%d3], %r2; st.global.u32 [%d3+256], %r5;
    st.global.u32 [%d3+512], %r3; st.global.u32 [%d3+768], %r4;"""
    )
    words = np.where(np.arange(64) < 32, WORDS, 0).astype(np.uint32)
    _, got = run(body, words, np.zeros((4, 64), np.uint32), threads=64)
    ballot = sum(int(words[i] & 1) << i for i in range(32))
    assert set(got[0, :32]) == {ballot}
    assert set(got[0, 32:]) == {0}
    assert set(got[1, :32]) == {1}
    assert set(got[1, 32:]) == {2}
    assert set(got[2, :32]) == {int((words[:32] & 1).sum())}
    assert set(got[3]) == {0xFFFFFFFF}


def bf16(values: np.ndarray) -> np.ndarray:
    """Return numbers with 8 significant bits as bfloat16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def element_of_a(shape: tuple[int, int, int], width: int, lane: int, index: int) -> tuple[int, int]:
    """Return row and column of element `index` of a lane's part of A, by the tables of the manual."""
    group, inside = lane >> 2, lane % 4
    m, _, k = shape
    word = index // width
    row = group + (8 if m == 16 and word % 2 else 0)
    column = inside * width + index % width + (4 * width if word >= m // 8 else 0)
    assert column < k
    return row, column


SHAPES = [
    ((16, 8, 32), "s8", "s8", 4, 4, 2),
    ((16, 8, 32), "u8", "s8", 4, 4, 2),
    ((16, 8, 16), "s8", "s8", 4, 2, 1),
    ((8, 8, 16), "s8", "s8", 4, 1, 1),
    ((8, 8, 16), "u8", "s8", 4, 1, 1),
    ((16, 8, 16), "f16", "f16", 2, 4, 2),
    ((16, 8, 16), "bf16", "bf16", 2, 4, 2),
    ((16, 8, 8), "f16", "f16", 2, 2, 1),
]


@pytest.mark.parametrize(("shape", "a_kind", "b_kind", "width", "a_words", "b_words"), SHAPES)
def test_matrix_products(shape, a_kind: str, b_kind: str, width: int, a_words: int, b_words: int) -> None:
    m, n, k = shape
    numbers = {"s8": (-128, 128), "u8": (0, 256), "f16": (-30, 31), "bf16": (-30, 31)}
    a, b = RANDOM.integers(*numbers[a_kind], (m, k)), RANDOM.integers(*numbers[b_kind], (k, n))
    c = RANDOM.integers(-1000, 1000, (m, n))
    store = {"s8": lambda v: np.int8(v), "u8": lambda v: np.uint8(v), "f16": lambda v: np.float16(v), "bf16": bf16}
    c_words, total = (4 if m == 16 else 2), "s32" if a_kind[-1] == "8" else "f32"
    lanes = np.zeros((32, a_words * width), int), np.zeros((32, b_words * width), int), np.zeros((32, c_words), int)
    places = np.zeros((32, c_words, 2), int)
    for lane in range(32):
        group, inside = lane >> 2, lane % 4
        for index in range(a_words * width):
            lanes[0][lane, index] = a[element_of_a(shape, width, lane, index)]
        for index in range(b_words * width):
            lanes[1][lane, index] = b[inside * width + index % width + 4 * width * (index // width), group]
        for index in range(c_words):
            places[lane, index] = group + 8 * (index // 2), inside * 2 + index % 2
            lanes[2][lane, index] = c[tuple(places[lane, index])]
    words = [
        np.ascontiguousarray(store[kind](part)).view(np.uint32)
        for kind, part in zip((a_kind, b_kind), lanes[:2], strict=True)
    ]
    sums = lanes[2].astype(np.int32 if total == "s32" else np.float32)
    got = run(_product(shape, total, a_kind, b_kind, a_words, b_words, c_words), *words, sums)[2]
    wanted = a @ b + c
    np.testing.assert_array_equal(got, wanted[places[..., 0], places[..., 1]])


def _product(shape, total: str, a_kind: str, b_kind: str, a_words: int, b_words: int, c_words: int) -> str:
    a, b = ([f"%r{first + i}" for i in range(count)] for first, count in ((10, a_words), (20, b_words)))
    c = [f"%{'r3' if total == 's32' else 'f3'}{i}" for i in range(c_words)]
    body = ""
    for pointer, names in enumerate((a, b, c)):
        body += f"mul.wide.u32 %d1, thread, {4 * len(names)}; add.s64 %d{2 + pointer}, p{pointer}, %d1;"
        body += "".join(f"ld.global.b32 {name}, [%d{2 + pointer}+{4 * i}];" for i, name in enumerate(names))
    m, n, k = shape
    registers = ", ".join("{" + ", ".join(part) + "}" for part in (c, a, b, c))
    body += f"mma.sync.aligned.m{m}n{n}k{k}.row.col.{total}.{a_kind}.{b_kind}.{total} {registers};"
    return body + "".join(f"st.global.b32 [%d4+{4 * i}], {name};" for i, name in enumerate(c))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_from_shared_memory(count: int, transposed: bool) -> None:
    """Lane 8 i + r has the address of row r of matrix i; here rows lie in reverse order."""
    names = ", ".join(f"%r{i}" for i in range(count))
    stores = "".join(f"st.global.u32 [%d3+{128 * i}], %r{i};" for i in range(count))
    body = (
        AT
        + f"""mul.wide.u32 %d4, thread, 16; add.s64 %d5, p0, %d4; ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d5];
    mov.u32 %r20, buffer; sub.s32 %r21, 31, thread; shl.b32 %r21, %r21, 4; add.s32 %r21, %r21, %r20;
    st.shared.v4.u32 [%r21], {{%r10, %r11, %r12, %r13}}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{names}}}, [%r21];
    {stores}"""
    )
    halves = RANDOM.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    _, got = run(body, halves, np.zeros((count, 32), np.uint32), before=SHARED)
    for i in range(count):
        matrix = halves[i].T if transposed else halves[i]
        for lane in range(32):
            pair = matrix[lane >> 2, 2 * (lane % 4)], matrix[lane >> 2, 2 * (lane % 4) + 1]
            assert got[i, lane] == int(pair[0]) | int(pair[1]) << 16


@pytest.mark.interpreter_only
@pytest.mark.parametrize(
    "instruction",
    [
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r1,%r2}, {%r1}, {%r1}, {%r1,%r2};",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r2];",
    ],
)
def test_a_part_of_a_warp_is_refused(instruction: str) -> None:
    body = f"mov.b32 %r2, 0; setp.ge.s32 %p1, thread, 31; @%p1 bra $end; {instruction} st.global.u32 [p0], %r1;\n$end:"
    with pytest.raises(RuntimeError, match="by a part of a warp"):
        run(body, np.zeros(1, np.uint32))


@pytest.mark.interpreter_only
def test_shapes_that_are_not_known_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="mma of shape"):
        run(
            "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f1,%f2}, {%r1}, {%r2}, {%f1,%f2};",
            np.zeros(1, np.uint32),
        )
