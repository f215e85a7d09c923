"""Races, barriers and the order of warps and blocks in the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.handwritten import BLOCK_SUM, SHARED, kernel_text, run
from tests.cuda.interpreter import Kernel, Memory, RaceError

pytestmark = pytest.mark.interpreter_only

NUMBERS = np.random.default_rng(5).integers(-99, 100, 64).astype(np.float32)
AT = "mov.u32 %r9, buffer; shl.b32 %r8, thread, 2; add.s32 %r9, %r9, %r8; xor.b32 %r7, %r8, {}; mov.u32 %r6, buffer;"
AT += "add.s32 %r7, %r7, %r6; mul.wide.u32 %d1, thread, 4; add.s64 %d2, p0, %d1;"


def exchange(other: int, between: str, before: str = "") -> np.ndarray:
    """Store the thread's number, read that of thread ^ other; return what 64 threads read."""
    body = AT.format(4 * other) + before + f"st.shared.u32 [%r9], thread; {between} ld.shared.u32 %r1, [%r7];"
    return run(body + "st.global.u32 [%d2], %r1;", np.zeros(64, np.uint32), threads=64, before=SHARED)[0]


def test_a_barrier_orders_the_warps_of_a_block() -> None:
    np.testing.assert_array_equal(exchange(32, "bar.sync 0;"), np.arange(64) ^ 32)
    with pytest.raises(RaceError) as raised:
        exchange(32, "")
    assert "reads byte" in str(raised.value)
    assert "no barrier orders them" in str(raised.value)
    with pytest.raises(RaceError):
        exchange(32, "bar.warp.sync -1;")


def test_a_barrier_of_a_warp_orders_its_lanes() -> None:
    np.testing.assert_array_equal(exchange(1, "bar.warp.sync -1;"), np.arange(64) ^ 1)
    np.testing.assert_array_equal(exchange(1, "bar.sync 0;"), np.arange(64) ^ 1)
    np.testing.assert_array_equal(exchange(0, ""), np.arange(64))
    with pytest.raises(RaceError, match="no barrier orders them"):
        exchange(1, "")
    with pytest.raises(RaceError, match="no barrier orders them"):
        exchange(1, "mov.b32 %r2, 0; shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;")


def test_a_store_must_wait_for_the_readers_before() -> None:
    again = "ld.shared.u32 %r1, [%r7]; {} st.shared.u32 [%r9], %r1;"
    start = "st.shared.u32 [%r9], thread; bar.sync 0;"
    exchange(32, "bar.sync 0;", start + again.format("bar.sync 0;") + "bar.sync 0;")
    with pytest.raises(RaceError, match=r"writes byte \d+ of shared memory in line \d+, read by thread"):
        exchange(32, "bar.sync 0;", start + again.format(""))
    with pytest.raises(RaceError, match="writes byte"):
        exchange(1, "bar.sync 0;", start + again.format(""))


def test_two_threads_must_not_store_to_one_place() -> None:
    with pytest.raises(RaceError, match="written by"):
        run("st.shared.u32 [buffer], thread;", np.zeros(1, np.uint32), before=SHARED)
    with pytest.raises(RaceError, match="written by"):
        run(
            "and.b32 %r1, thread, 31; setp.eq.s32 %p1, %r1, 0; @%p1 st.shared.u32 [buffer], thread;",
            np.zeros(1),
            threads=64,
            before=SHARED,
        )


def test_storing_what_others_store_is_harmless() -> None:
    body = (
        "mov.b32 %r1, 7; st.shared.u32 [buffer], %r1; bar.sync 0; ld.shared.u32 %r2, [buffer]; st.global.u32 [p0], %r2;"
    )
    assert run(body, np.zeros(1, np.uint32), threads=64, before=SHARED)[0] == 7


def test_bytes_of_a_word_belong_to_different_threads() -> None:
    body = """mov.u32 %r1, buffer; add.s32 %r1, %r1, thread; cvt.u16.u32 %q1, thread; st.shared.u8 [%r1], %q1;
    bar.warp.sync -1; setp.ge.u32 %p1, thread, 8; @%p1 bra $end;
    shl.b32 %r2, thread, 2; mov.u32 %r3, buffer; add.s32 %r2, %r2, %r3; ld.shared.u32 %r4, [%r2];
    mul.wide.u32 %d2, thread, 4; add.s64 %d3, p0, %d2; st.global.u32 [%d3], %r4;
$end:"""
    (got,) = run(body, np.zeros(8, np.uint32), before=SHARED)
    np.testing.assert_array_equal(got.view(np.uint8), np.arange(32))
    with pytest.raises(RaceError):
        run(body.replace("bar.warp.sync -1;", ""), np.zeros(8, np.uint32), before=SHARED)


def test_an_asynchronous_copy_must_not_overwrite_what_is_being_read() -> None:
    copy = "cp.async.ca.shared.global [%r9], [%d2], 4; cp.async.commit_group; {} cp.async.wait_group 0; {}"
    np.testing.assert_array_equal(exchange(32, "bar.sync 0;" + copy.format("", "bar.sync 0;"), ""), np.zeros(64))
    with pytest.raises(RaceError):
        exchange(32, copy.format("", ""))
    with pytest.raises(RaceError):
        exchange(32, "bar.sync 0; ld.shared.u32 %r1, [%r7];" + copy.format("", "bar.sync 0;"))


def test_without_the_detector_the_order_of_warps_shows_a_missing_barrier() -> None:
    body = AT.format(128) + "st.shared.u32 [%r9], thread; ld.shared.u32 %r1, [%r7]; st.global.u32 [%d2], %r1;"
    found = set()
    for seed in range(8):
        options = {"threads": 64, "before": SHARED, "races": False, "cohorts": 2, "seed": seed}
        found.add(tuple(run(body, np.zeros(64, np.uint32), **options)[0].tolist()))
    assert len(found) > 1


def test_named_barriers_hold_a_part_of_the_threads() -> None:
    """Warps 0 and 1 meet at barrier 1; warp 2 goes its own way and meets both at barrier 0."""
    body = (
        AT.format(128)
        + """mov.b32 %r1, 0; setp.ge.u32 %p1, thread, 64; @%p1 bra $join;
    st.shared.u32 [%r9], thread; bar.sync 1, 64; ld.shared.u32 %r1, [%r7];
$join:
    bar.sync 0; st.global.u32 [%d2], %r1;"""
    )
    (got,) = run(body, np.zeros(96, np.uint32), threads=96, before=SHARED)
    np.testing.assert_array_equal(got, [*(np.arange(64) ^ 32), *[0] * 32])
    with pytest.raises(RuntimeError, match=r"wait at the barrier in line \d+ for ever"):
        run(body.replace("bar.sync 1, 64", "bar.sync 1, 96"), np.zeros(96, np.uint32), threads=96, before=SHARED)
    with pytest.raises(RuntimeError, match="more threads reach barrier 1 than it is for"):
        run(
            body.replace("bar.sync 1, 64", "bar.sync 1, 32"),
            np.zeros(96, np.uint32),
            threads=96,
            before=SHARED,
            cohorts=1,
        )


def test_threads_that_have_ended_do_not_hold_a_barrier() -> None:
    body = AT.format(0) + "setp.ge.u32 %p1, thread, 32; @%p1 ret; bar.sync 0; st.global.u32 [%d2], thread;"
    (got,) = run(body, np.zeros(64, np.uint32), threads=64, before=SHARED)
    np.testing.assert_array_equal(got[:32], np.arange(32))


def test_a_barrier_in_a_branch_of_a_warp_is_refused() -> None:
    body = "and.b32 %r1, thread, 1; setp.eq.s32 %p1, %r1, 0; @%p1 bra $end; bar.sync 0;\n$end:"
    with pytest.raises(RuntimeError, match="a part of a warp reaches the barrier"):
        run(body + "bar.sync 0;", np.zeros(1), threads=64)


def test_a_barrier_of_the_grid() -> None:
    """Let every block count itself and spin until all have come; then each reads its neighbour's word."""
    body = """setp.ne.s32 %p1, thread, 0; @%p1 bra $end;
    mul.wide.u32 %d1, block, 4; add.s64 %d2, p0, %d1; add.s32 %r1, block, 7; st.global.u32 [%d2], %r1;
    mov.b32 %r2, 1; red.release.gpu.global.add.u32 [p1], %r2; mov.u32 %r3, %nctaid.x;
$spin:
    ld.acquire.gpu.global.u32 %r4, [p1]; setp.lt.u32 %p2, %r4, %r3; @%p2 bra $spin;
    xor.b32 %r5, block, 1; mul.wide.u32 %d3, %r5, 4; add.s64 %d4, p0, %d3; ld.global.u32 %r6, [%d4];
    add.s64 %d5, p1, %d1; st.global.u32 [%d5+4], %r6;
$end:"""
    for seed in range(3):
        _, got = run(body, np.zeros(8, np.uint32), np.zeros(9, np.uint32), grid=8, threads=64, seed=seed, cohorts=3)
        np.testing.assert_array_equal(got, [8, *(np.arange(8) ^ 1) + 7])
    kernel = Kernel(kernel_text(body), "hand", most_steps=2000)
    memory = Memory()
    with pytest.raises(RuntimeError, match="kernel hand does not end"):
        kernel.run(
            memory, 8, 64, memory.place(np.zeros(8, np.uint32)), memory.place(np.zeros(9, np.uint32)), together=4
        )


def test_positions_in_grids_of_three_dimensions() -> None:
    body = """mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %ctaid.y; mov.u32 %r4, %ctaid.z;
    mov.u32 %r5, %ntid.y; mov.u32 %r6, %nctaid.y; mov.u32 %r10, %ntid.x; mad.lo.s32 %r7, %r2, %r10, %r1;
    mad.lo.s32 %r8, %r4, %r6, %r3;
    mul.lo.s32 %r11, %r10, %r5; mad.lo.s32 %r8, %r8, %r11, %r7; mul.wide.u32 %d1, %r8, 4; add.s64 %d2, p0, %d1;
    mov.u32 %r9, %laneid; st.global.u32 [%d2], %r9;"""
    (got,) = run(body, np.zeros(6 * 64, np.uint32), grid=(1, 2, 3), threads=(16, 4))
    np.testing.assert_array_equal(got, np.tile(np.arange(32), 12))


@pytest.mark.parametrize("cohorts", [1, 2, 5])
def test_a_sum_over_warps(cohorts: int) -> None:
    _, got = run(BLOCK_SUM, NUMBERS, np.zeros(1, np.float32), threads=64, before=SHARED, cohorts=cohorts)
    assert got[0] == NUMBERS[:32].sum() - NUMBERS[32:].sum()


def test_a_trap_is_reported() -> None:
    with pytest.raises(RuntimeError, match=r"trap in line \d+"):
        run("setp.eq.s32 %p1, thread, 3; @%p1 trap;", np.zeros(1))
