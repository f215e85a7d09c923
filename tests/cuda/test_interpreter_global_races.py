"""Races in global memory: within a block, and between blocks with and without release and acquire."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.handwritten import run
from tests.cuda.interpreter import RaceError

pytestmark = pytest.mark.interpreter_only

AT = "mul.wide.u32 %d1, thread, 4; add.s64 %d2, p0, %d1; xor.b32 %r8, thread, {}; mul.wide.u32 %d3, %r8, 4;"
AT += "add.s64 %d4, p0, %d3;"
BLOCK = "setp.ne.s32 %p1, thread, 0; @%p1 ret; mul.wide.u32 %d1, block, 4; add.s64 %d2, p0, %d1;"
WORDS = np.zeros(64, np.uint32)


def exchange(other: int, between: str) -> np.ndarray:
    """Store the thread's number in global memory, read that of thread ^ other; return what 64 threads read."""
    body = AT.format(other) + f"st.global.u32 [%d2], thread; {between} ld.global.u32 %r1, [%d4];"
    body += "add.s64 %d5, p1, %d1; st.global.u32 [%d5], %r1;"
    return run(body, WORDS, WORDS, threads=64)[1]


def test_threads_of_a_block() -> None:
    np.testing.assert_array_equal(exchange(32, "bar.sync 0;"), np.arange(64) ^ 32)
    np.testing.assert_array_equal(exchange(1, "bar.warp.sync -1;"), np.arange(64) ^ 1)
    np.testing.assert_array_equal(exchange(0, ""), np.arange(64))
    for other, between in ((32, ""), (32, "bar.warp.sync -1;"), (1, ""), (1, "fence.acq_rel.gpu;")):
        with pytest.raises(RaceError, match=r"reads byte \d+ of a global .* written by thread \d+ of block 0"):
            exchange(other, between)


def test_a_store_after_a_read_of_another_thread() -> None:
    body = AT.format(32) + "ld.global.u32 %r1, [%d4]; {} st.global.u32 [%d2], thread;"
    run(body.format("bar.sync 0;"), WORDS, threads=64)
    with pytest.raises(RaceError, match=r"writes byte .* read by thread"):
        run(body.format(""), WORDS, threads=64)


def test_blocks_that_store_to_one_place() -> None:
    body = "setp.ne.s32 %p1, thread, 0; @%p1 ret; st.global.u32 [p0], block;"
    run(body, WORDS, grid=1)
    with pytest.raises(RaceError, match=r"thread 0 of block \d writes byte 0 .* written by thread 0 of block"):
        run(body, WORDS, grid=2)
    with pytest.raises(RaceError, match="writes byte 0"):
        run("st.global.u32 [p0], thread;", WORDS)


def test_bytes_of_a_word_may_belong_to_different_blocks() -> None:
    body = """setp.ne.s32 %p1, thread, 0; @%p1 ret; cvt.u64.u32 %d1, block; add.s64 %d2, p0, %d1;
    cvt.u16.u32 %q1, block; st.global.u8 [%d2], %q1;"""
    (got,) = run(body, WORDS, grid=8)
    np.testing.assert_array_equal(got.view(np.uint8)[:8], np.arange(8))


def test_a_block_overwrites_what_others_read() -> None:
    body = "ld.global.u32 %r1, [p0];" + BLOCK + "{}"
    run(body.format("add.s64 %d3, %d2, 8; add.s32 %r1, %r1, 5; st.global.u32 [%d3], %r1;"), WORDS, grid=4)
    with pytest.raises(RaceError, match="read by several threads"):
        run(body.format("add.s32 %r1, %r1, 5; st.global.u32 [%d2], %r1;"), WORDS, grid=4)


def test_storing_what_others_store_is_harmless() -> None:
    for threads, grid in ((32, 1), (64, 1), (64, 3)):
        (got,) = run("mov.b32 %r1, 7; st.global.u32 [p0], %r1;", WORDS, threads=threads, grid=grid)
        assert got[0] == 7


def test_what_is_loaded_as_constant_must_not_be_written() -> None:
    body = AT.format(0) + "ld.global.nc.u32 %r1, [%d2]; st.global.u32 [{}], %r1;"
    run(body.format("%d2+256"), np.zeros(128, np.uint32))
    with pytest.raises(RaceError, match=r"near what the kernel loads by \.nc"):
        run(body.format("%d2"), WORDS)
    with pytest.raises(RaceError, match="written by"):
        run(
            AT.format(0) + "st.global.u32 [%d2], thread; bar.sync 0; ld.global.nc.u32 %r1, [%d4+4];",
            np.zeros(65, np.uint32),
        )


MERGE = """
    mul.wide.u32 %d1, thread, 4; mul.wide.u32 %d2, block, 256; add.s64 %d3, p0, %d2; add.s64 %d3, %d3, %d1;
    add.s32 %r1, block, thread; st.global.u32 [%d3], %r1; {before}
    setp.ne.s32 %p1, thread, 0; @%p1 bra $wait;
    mov.u32 %r2, %nctaid.x; sub.s32 %r3, %r2, 1; {fence} atom.{order}.global.inc.u32 %r4, [p1], %r3; {fence_after}
    st.shared.u32 [last], %r4;
$wait:
    {after} ld.shared.u32 %r5, [last];
    mov.u32 %r6, %nctaid.x; add.s32 %r6, %r6, -1; setp.ne.s32 %p2, %r5, %r6; @%p2 ret;
    mov.b32 %r7, 0; mov.b32 %r8, 0; add.s64 %d4, p0, %d1;
$more:
    ld.global.u32 %r9, [%d4]; add.s32 %r8, %r8, %r9; add.s64 %d4, %d4, 256; add.s32 %r7, %r7, 1;
    setp.le.s32 %p3, %r7, %r6; @%p3 bra $more;
    add.s64 %d5, p1, %d1; st.global.u32 [%d5+256], %r8;"""
GOOD = {"before": "bar.sync 0;", "order": "acq_rel.gpu", "fence": "", "fence_after": "", "after": "bar.sync 0;"}
FENCED = {**GOOD, "order": "relaxed.gpu", "fence": "fence.acq_rel.gpu;", "fence_after": "fence.acq_rel.gpu;"}


def merge(parts: dict[str, str], seed: int) -> None:
    arrays = np.zeros((20, 64), np.uint32), np.zeros(128, np.uint32)
    before = ".shared .align 16 .b8 last[4];"
    _, got = run(MERGE.format(**parts), *arrays, grid=20, threads=64, before=before, seed=seed)
    np.testing.assert_array_equal(got[64:], 20 * np.arange(64) + 190)


@pytest.mark.parametrize("parts", [GOOD, FENCED], ids=["acq_rel", "fences"])
def test_the_last_block_sees_what_others_released(parts: dict[str, str]) -> None:
    for seed in range(3):
        merge(parts, seed)


@pytest.mark.parametrize(
    "fault",
    [
        {"before": ""},  # The other warp may not have stored yet when thread 0 counts the block.
        {"order": "relaxed.gpu"},
        {"order": "relaxed.gpu", "fence": "fence.acq_rel.gpu;"},
        {"order": "relaxed.gpu", "fence_after": "fence.acq_rel.gpu;"},
        {"after": ""},
    ],
    ids=["no barrier before", "no fences", "no acquire", "no release", "no barrier after"],
)
def test_a_merge_that_forgets_something(fault: dict[str, str]) -> None:
    with pytest.raises(RaceError):
        merge({**GOOD, **fault}, 1)
