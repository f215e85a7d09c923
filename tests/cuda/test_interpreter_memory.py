"""Loads, stores and atomics of the interpreter: values, bounds, alignment and poison."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.handwritten import SHARED, kernel_text, run
from tests.cuda.interpreter import Kernel, Memory

AT = "mul.wide.u32 %d1, thread, {}; add.s64 %d2, p0, %d1; add.s64 %d3, p1, %d1;"
WORDS = np.random.default_rng(1).integers(0, 2**32, 256, dtype=np.uint64).astype(np.uint32)


@pytest.mark.parametrize(
    ("bytes_each", "copy"),
    [
        (1, "ld.global.u8 %q1, [%d2]; st.global.u8 [%d3], %q1;"),
        (2, "ld.global.u16 %q1, [%d2]; st.global.u16 [%d3], %q1;"),
        (4, "ld.global.nc.f32 %f1, [%d2]; st.global.f32 [%d3], %f1;"),
        (8, "ld.global.u64 %d4, [%d2]; st.global.u64 [%d3], %d4;"),
        (8, "ld.global.v2.u32 {%r1, %r2}, [%d2]; st.global.v2.u32 [%d3], {%r1, %r2};"),
        (8, "ld.global.v4.u16 {%q1, %q2, %q3, %q4}, [%d2]; st.global.v4.u16 [%d3], {%q1, %q2, %q3, %q4};"),
        (
            16,
            "ld.global.nc.L1::no_allocate.v4.f32 {%f1, %f2, %f3, %f4}, [%d2];"
            "st.global.v4.f32 [%d3], {%f1, %f2, %f3, %f4};",
        ),
        (16, "ld.global.v2.u64 {%d4, %d5}, [%d2]; st.global.v2.u64 [%d3], {%d4, %d5};"),
        (
            16,
            "cvta.to.global.u64 %d4, %d2; ld.v4.u32 {%r1, %r2, %r3, %r4}, [%d4];st.v4.u32 [%d3], {%r1, %r2, %r3, %r4};",
        ),
    ],
)
def test_global_copies(bytes_each: int, copy: str) -> None:
    _, got = run(AT.format(bytes_each) + copy, WORDS, np.zeros(256, np.uint32))
    wanted = np.zeros(256, np.uint32)
    wanted[: 8 * bytes_each] = WORDS[: 8 * bytes_each]
    np.testing.assert_array_equal(got, wanted)


def test_signs_of_small_loads() -> None:
    body = (
        AT.format(4)
        + "ld.global.s8 %r1, [%d2]; ld.global.s16 %r2, [%d2+2]; add.s32 %r3, %r1, %r2; st.global.s32 [%d3], %r3;"
    )
    source, got = run(body, WORDS[:32], np.zeros(32, np.int32))
    wanted = source.view(np.int8)[0::4].astype(np.int32) + source.view(np.int16)[1::2]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.interpreter_only
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "ld.global.u32 %r1, [p0+128]; st.global.u32 [p1], %r1;",
            "load of 4 bytes outside of memory: byte 128 of array 0",
        ),
        ("ld.global.u32 %r1, [p0+-4]; st.global.u32 [p1], %r1;", "outside of memory"),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [p0+8]; st.global.u32 [p1], %r1;", "load of 16 bytes is not aligned"),
        ("mov.b32 %r1, 1; st.global.u32 [p1+126], %r1;", "outside of memory"),
        ("mov.b32 %r1, 1; st.global.u32 [p1+2], %r1;", "store of 4 bytes is not aligned"),
        ("mov.b32 %r1, 1; st.shared.u32 [buffer+1024], %r1;", "4 bytes at byte 1024 of 1024 bytes of shared memory"),
        (
            "ld.shared.u64 %d1, [buffer+4]; st.global.u64 [p1], %d1;",
            "an access of 8 bytes to shared memory is not aligned",
        ),
        ("mov.b32 %r2, 4000; ld.shared.u32 %r1, [%r2]; st.global.u32 [p1], %r1;", "of shared memory"),
    ],
)
def test_accesses_outside_of_memory(body: str, message: str) -> None:
    guard = "setp.ne.s32 %p1, thread, 0; @%p1 bra $end;"
    with pytest.raises(IndexError, match=message) as raised:
        run(f"{guard} {body}\n$end:", np.zeros(32, np.uint32), np.zeros(32, np.uint32), before=SHARED)
    assert "hand, PTX line" in raised.value.__notes__[0]


def test_a_guarded_access_is_not_made() -> None:
    body = (
        AT.format(4)
        + "setp.lt.s32 %p1, thread, 20; mov.b32 %r1, 7; @%p1 ld.global.u32 %r1, [%d2]; @!%p1 st.global.u32 [%d3], %r1;"
    )
    _, got = run(body, np.zeros(20, np.uint32), np.zeros(32, np.uint32))
    np.testing.assert_array_equal(got, np.where(np.arange(32) < 20, 0, 7))


@pytest.mark.interpreter_only
def test_what_was_never_written_is_poison() -> None:
    body = (
        AT.format(4)
        + "ld.shared.f32 %f1, [buffer]; add.rn.f32 %f2, %f1, %f9; st.global.f32 [%d3], %f1; st.global.f32 [%d2], %f9;"
    )
    registers, shared = run(body, np.zeros(32, np.float32), np.zeros(32, np.float32), before=SHARED)
    assert np.isnan(shared).all()
    assert (np.abs(registers) > 1e30).all()
    memory = Memory()
    assert np.isnan(memory.back(memory.place_empty((2, 3), np.float32), np.float32, (2, 3))).all()


def test_local_memory_belongs_to_a_thread() -> None:
    body = """.local .align 16 .b8 depot[16];
    mov.u64 %d4, depot; cvta.local.u64 %d5, %d4;
    st.local.u32 [%d4+4], thread; ld.u32 %r1, [%d5+4]; mul.wide.u32 %d1, thread, 4; add.s64 %d2, p0, %d1;
    st.global.u32 [%d2], %r1;"""
    (got,) = run(body, np.zeros(64, np.uint32), threads=64)
    np.testing.assert_array_equal(got, np.arange(64))


@pytest.mark.interpreter_only
def test_constants_and_dynamic_shared_memory() -> None:
    before = """.extern .shared .align 16 .b8 dynamic[];
.const .align 4 .b8 table[8] = {1, 0, 0, 0, 255, 1, 0, 0};"""
    body = """mov.u64 %d1, table; ld.const.u32 %r1, [%d1+4]; mov.u32 %r2, %dynamic_smem_size;
    setp.ne.s32 %p1, thread, 0; @%p1 bra $end;
    st.shared.u32 [dynamic+60], %r1; ld.shared.u32 %r3, [dynamic+60];
    st.global.u32 [p0], %r3; st.global.u32 [p0+4], %r2;
$end:"""
    (got,) = run(body, np.zeros(2, np.uint32), before=before, shared_bytes=64)
    assert got.tolist() == [511, 64]
    with pytest.raises(IndexError, match="of 60 bytes of shared"):
        run(body, np.zeros(2, np.uint32), before=before, shared_bytes=60)


@pytest.mark.parametrize(
    ("operation", "start", "wanted"),
    [
        ("add", 5, 5 + 3 * 64),
        ("max", 5, 5),
        ("min", 5, 3),
        ("inc", 5, None),
        ("exch", 5, 3),
        ("or", 4, 7),
        ("xor", 5, 5),
    ],
)
def test_atomics(operation: str, start: int, wanted: int | None) -> None:
    kind = "b32" if operation in ("exch", "or", "xor") else "u32"
    body = f"mov.b32 %r1, 3; atom.acq_rel.gpu.global.{operation}.{kind} %r2, [p0], %r1;" + AT.format(4)
    total, old = run(
        body + "st.global.u32 [%d3], %r2;", np.array([start], np.uint32), np.zeros(64, np.uint32), threads=64
    )
    if operation == "inc":  # 5 is above 3, so the first thread wraps to 0; then 1, 2, 3, 0, …
        assert sorted(old.tolist()) == sorted([5, *(i % 4 for i in range(63))])
    else:
        assert total[0] == wanted
    if operation == "add":
        assert sorted(old.tolist()) == [5 + 3 * i for i in range(64)]


@pytest.mark.interpreter_only
def test_atomics_take_turns_in_random_order() -> None:
    body = "mov.b32 %r1, 1; atom.global.add.u32 %r2, [p0], %r1;" + AT.format(4) + "st.global.u32 [%d3], %r2;"
    arrays = np.zeros(1, np.uint32), np.zeros(32, np.uint32)
    orders = {tuple(run(body, *arrays, seed=seed)[1].tolist()) for seed in range(4)}
    assert len(orders) == 4
    assert tuple(run(body, *arrays, seed=2)[1].tolist()) in orders


@pytest.mark.interpreter_only
def test_the_last_block_to_arrive_merges() -> None:
    """Let each block store its number and count itself; the last one adds up, whichever it is."""
    body = """
    setp.ne.s32 %p1, thread, 0; @%p1 bra $end;
    mul.wide.u32 %d1, block, 4; add.s64 %d2, p0, %d1; add.s32 %r1, block, 1;
    st.global.u32 [%d2], %r1; fence.acq_rel.gpu; mov.u32 %r2, %nctaid.x; sub.s32 %r3, %r2, 1;
    atom.acq_rel.gpu.global.inc.u32 %r4, [p1], %r3;
    setp.ne.s32 %p2, %r4, %r3; @%p2 bra $end;
    mov.b32 %r5, 0; mov.b32 %r6, 0; mov.b64 %d3, p0;
$more:
    ld.global.u32 %r7, [%d3]; add.s32 %r6, %r6, %r7; add.s64 %d3, %d3, 4;
    add.s32 %r5, %r5, 1; setp.lt.s32 %p3, %r5, %r2; @%p3 bra $more;
    st.global.u32 [p1+4], %r6; st.global.u32 [p1+8], block;
$end:"""
    last = set()
    for seed in range(6):
        _, (counter, total, block) = run(body, np.zeros(40, np.uint32), np.zeros(3, np.uint32), grid=40, seed=seed)
        assert (counter, total) == (0, 820)
        last.add(int(block))
    assert len(last) > 1


@pytest.mark.interpreter_only
def test_asynchronous_copies_arrive_when_they_are_waited_for() -> None:
    body = """
    mul.wide.u32 %d1, thread, 16; add.s64 %d2, p0, %d1; shl.b32 %r1, thread, 4;
    mov.u32 %r8, buffer; add.s32 %r1, %r1, %r8; mov.b32 %r9, 4;
    cp.async.cg.shared.global [%r1], [%d2], 16; cp.async.commit_group;
    cp.async.ca.shared.global [%r1+512], [%d2], 8, %r9; cp.async.commit_group;
    cp.async.wait_group {}; ld.shared.u32 %r2, [%r1]; ld.shared.v2.u32 {{%r3, %r4}}, [%r1+512];
    add.s64 %d3, p1, %d1; st.global.v4.u32 [%d3], {{%r2, %r3, %r4, %r2}};"""
    poison = 0xFFFFFFFF
    for groups, first, second in ((0, True, True), (1, True, False), (2, False, False)):
        source, got = run(body.format(groups), WORDS[:128], np.zeros((32, 4), np.uint32), before=SHARED)
        words = source.reshape(32, 4)[:, 0]
        np.testing.assert_array_equal(got[:, 0], words if first else poison)
        np.testing.assert_array_equal(got[:, 1], words if second else poison)
        np.testing.assert_array_equal(got[:, 2], 0 if second else poison)


@pytest.mark.interpreter_only
def test_freed_memory_is_outside() -> None:
    memory = Memory()
    first, second = memory.place(np.zeros(32, np.uint32)), memory.place(np.zeros(32, np.uint32))
    kernel = Kernel(
        kernel_text("ld.global.u32 %r1, [p0]; setp.eq.s32 %p1, thread, 0; @%p1 st.global.u32 [p1], %r1;"), "hand"
    )
    kernel.run(memory, 1, 32, first, second)
    memory.free(first)
    with pytest.raises(IndexError, match="load of 4 bytes outside of memory"):
        kernel.run(memory, 1, 32, first, second)


@pytest.mark.interpreter_only
def test_arguments_are_counted() -> None:
    kernel = Kernel(kernel_text(""), "hand")
    with pytest.raises(TypeError, match="hand has 2 parameters, not 1"):
        kernel.run(Memory(), 1, 32, 0)
    with pytest.raises(ValueError, match="33 threads per block"):
        kernel.run(Memory(), 1, 33, 0, 0)
    with pytest.raises(ValueError, match="has no kernel foot"):
        Kernel(kernel_text(""), "foot")
