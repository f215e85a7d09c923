"""Machine code of the kernels that do most of the work: the right dot products, and sums that stay in registers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
from llvmlite import ir
from numba.core import cgutils

from quant.native import simd_level
from qwchat.cpu.kernels import dot_products, jit, probe_loops, simd
from qwchat.cpu.kernels.kernel_store import PROBE_CHAINS
from tests.cpu.kernels import assembly, machine_code_listing

ROOT = Path(__file__).resolve().parents[3]
# Beginning of the instruction of each level, and its lanes.
DOT = {
    "avx512vnni": (r"vpdpbusd .*%zmm", 16),
    "avxvnni": (r"vpdpbusd .*%ymm", 8),
    "avx2": (r"vpmaddwd .*%ymm", 8),
    "neon": (r"sdot v\d+\.4s", 4),
}
# The same for products of 16-bit integers; on NEON they are ordinary multiplications.
DOT16 = {
    "avx512vnni": (r"vpdpwssd .*%zmm", 16),
    "avxvnni": (r"vpdpwssd .*%ymm", 8),
    "avx2": (r"vpmaddwd .*%ymm", 8),
    "neon": (r"mla v|smlal2? v|mul v", 4),
}
MULTIPLY_ADD = r"vfn?madd\w+ps|fml[as] v"
LEVELS = [*(name for name in simd_level.supported_levels() if name in DOT), "neon"]


@pytest.fixture(scope="module")
def listings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Output of `tests.cpu.kernels.machine_code_listing` by level, filled as the tests need it."""

    def begin(name: str) -> subprocess.Popen[str]:
        cache = tmp_path_factory.mktemp(name.replace(" ", "-"))
        return subprocess.Popen(
            [sys.executable, "-m", "tests.cpu.kernels.machine_code_listing", *name.split()],
            cwd=ROOT,
            env=os.environ | {"QWCHAT_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # The listing that takes longest is compiled beside the first one that a test needs.
    begun = {"portable-aarch64": begin("portable-aarch64")}

    class Listings(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            process = begun.pop(name, None) or begin(name)
            out, err = process.communicate()
            assert process.returncode == 0, err
            self[name] = json.loads(out)
            return self[name]

    yield Listings()
    for process in begun.values():
        process.kill()
        process.communicate()


def hot_loops(code: str, name: str) -> list[assembly.Loop]:
    """Return the innermost loops that multiply."""
    pattern = "|".join((DOT[name][0], DOT16[name][0], MULTIPLY_ADD))
    return [loop for function in assembly.functions(code) for loop in function.innermost_loops() if loop.count(pattern)]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_every_dot_product_is_the_level_s_instruction(name: str, listings: dict[str, Any]) -> None:
    kernels = listings[name]["kernels"]
    for symbol, kernel in kernels.items():
        found = [
            str(each)
            for function in assembly.functions(kernel["code"])
            for block in function.blocks
            for each in block.instructions
        ]
        for pattern, lanes, asked in ((*DOT[name], kernel["dots"]), (*DOT16[name], kernel["dots16"])):
            assert lanes * sum(bool(re.match(pattern, each)) for each in found) >= asked, symbol
        assert "fmaf" not in kernel["code"], "a multiply-add became a library call"
        assert (name == "avx512vnni") or "zmm" not in kernel["code"], symbol
    assert kernels["qwchat_run_tile"]["dots"] >= 4 * 8 * 16
    assert name != "neon" or "\ttbl\t" in kernels["qwchat_run_tile"]["code"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_no_hot_loop_spills(name: str, listings: dict[str, Any]) -> None:
    spilling = {}
    for symbol, kernel in listings[name]["kernels"].items():
        loops = hot_loops(kernel["code"], name)
        assert loops or not kernel["dots"] + kernel["dots16"], symbol
        for loop in loops:
            if loop.spills():
                spilling[symbol, loop.function.name, loop.header] = loop.spills()
    assert not spilling


@pytest.mark.slow
@pytest.mark.skipif("avx512vnni" not in LEVELS, reason="the forward pass is judged where registers are plenty")
def test_no_loop_of_the_forward_pass_spills(listings: dict[str, Any]) -> None:
    """Check norms, quantisation, activation functions and softmax.

    On levels with fewer registers these loops may read constants from the stack.
    """
    kernels = listings["avx512vnni forward"]["kernels"]
    loops = hot_loops(kernels["qwchat_forward"]["code"], "avx512vnni")
    assert len(loops) >= 8
    assert [(loop.function.name, loop.spills()) for loop in loops if loop.spills()] == []


@pytest.mark.slow
def test_a_waiting_loop_tells_the_processor(listings: dict[str, Any]) -> None:
    assert "\tisb" in listings["neon"]["spinning"]
    assert "\tpause" not in listings["neon"]["spinning"]
    here = listings[LEVELS[0]]["spinning"]
    assert ("\tpause" in here) == (simd_level.architecture() == "x86")


@pytest.mark.slow
def test_the_portable_level_compiles_for_aarch64(listings: dict[str, Any]) -> None:
    kernels = listings["portable-aarch64"]["kernels"]
    assert hot_loops(kernels["qwchat_run_tile"]["code"], "neon")
    for symbol, kernel in kernels.items():
        assert not re.search(r"\tsdot\t|%[xyz]mm", kernel["code"]), symbol


def chains(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> assembly.Function:
    """Return a function that sums dot products in `count` registers, compiled for a level."""
    monkeypatch.setattr(simd_level, "current_level", lambda: name)
    lanes = DOT[name][1]
    words, line_bytes = ir.VectorType(simd.I32, lanes), ir.VectorType(simd.I8, 4 * lanes)
    module = ir.Module("chains")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [simd.I64] * 3), "chains")
    builder = ir.IRBuilder(function.append_basic_block())
    address, x, rounds = function.args
    slots = [cgutils.alloca_once(builder, words) for _ in range(count)]
    places = [builder.add(address, simd.I64(64 * number)) for number in range(count)]
    for slot, place in zip(slots, places, strict=True):
        builder.store(simd.emit_load(builder, place, words), slot)
    with cgutils.for_range(builder, rounds) as loop:
        line = simd.emit_load(builder, builder.add(x, builder.mul(loop.index, simd.I64(64))), line_bytes)
        for number, slot in enumerate(slots):
            x4 = simd.emit_bytes4(builder, builder.add(builder.add(x, loop.index), simd.I64(4 * number)), lanes)
            builder.store(dot_products.emit_offset_dot(builder, builder.load(slot), line, x4), slot)
    for slot, place in zip(slots, places, strict=True):
        simd.emit_store(builder, place, builder.load(slot))
    builder.ret_void()
    (found,) = assembly.functions(compiled(module, name))
    return found


def compiled(module: ir.Module, name: str) -> str:
    """Return the assembly of a module for a level's processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple, processor = llvm.get_process_triple(), (llvm.get_host_cpu_name(), "")
    if name == "neon":
        triple, processor = machine_code_listing.TRIPLE, machine_code_listing.PROCESSOR
    elif name in jit.PROCESSORS:
        processor = jit.PROCESSORS[name]
    parsed = llvm.parse_assembly(str(module))
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor[0], features=processor[1], opt=3)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(parsed, builder)
    text: str = machine.emit_assembly(parsed)
    return text


@pytest.mark.parametrize("name", LEVELS)
def test_a_loop_of_too_many_sums_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the check itself.

    Half as many sums as registers stay in registers; more sums than registers do not.
    """
    pattern, _ = DOT[name]
    registers = {"avx512vnni": 32, "neon": 32}.get(name, 16)
    for count, spills in ((registers // 2, False), (registers + 4, True)):
        loops = [loop for loop in chains(name, count, monkeypatch).innermost_loops() if loop.count(pattern)]
        assert all(loop.count(pattern) % count == 0 for loop in loops)
        assert [bool(loop.spills()) for loop in loops] == [spills] * len(loops)
        assert loops


@pytest.mark.parametrize("name", LEVELS)
def test_the_probe_measures_the_shortest_dot_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the loop of the int8 peak has no step of our own arithmetic, such as the signs on AVX2."""
    monkeypatch.setattr(simd_level, "current_level", lambda: name)
    module = ir.Module("probe")
    function = ir.Function(module, ir.FunctionType(simd.I64, [simd.I64] * 2), "probe")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(probe_loops.emit_dots(builder, *function.args))
    (found,) = assembly.functions(compiled(module, name))
    loops = [loop for loop in found.innermost_loops() if loop.count(DOT[name][0])]
    assert loops
    steps = {"avx2": ("vpmaddubsw", "vpmaddwd", "vpaddd")}.get(name, (DOT[name][0].split(" ")[0],))
    for loop in loops:
        rounds = loop.count(DOT[name][0]) // PROBE_CHAINS
        assert rounds > 0
        assert [loop.count(step) for step in steps] == [rounds * PROBE_CHAINS] * len(steps)
        assert loop.count(r"v?p?(sign|abs)\w* ") == 0
        assert not loop.spills()


X86 = """
	.type	first,@function
first:
	pushq	%rbp
	vmovups	%zmm1, 64(%rsp)
	testq	%rdi, %rdi
	je	.LBB0_5
.LBB0_1:                                # %outer
	xorl	%eax, %eax
	.p2align	4
.LBB0_2:                                # %inner
	vmovdqu64	64(%rsp), %zmm2         # 64-byte Reload
	{vex}	vpdpbusd	(%rsi), %ymm0, %ymm2
	vmovups	8(%rbp), %zmm3
	movq	16(%rsp), %rcx
	decq	%rax
	jne	.LBB0_2
.LBB0_4:
	decq	%rdi
	jne	.LBB0_1
.LBB0_5:
	vzeroupper
	retq
.Lfunc_end0:
	.size	first, .Lfunc_end0-first
	.type	second,@function
second:
	movq	%rsp, %rbp
	jmp	.LBB1_3
.LBB1_1:
	addq	$1, %rax
	jmp	.LBB1_4
.LBB1_3:
	vmovups	%ymm1, -32(%rbp)
	testq	%rax, %rax
	jne	.LBB1_1
	ud2
.LBB1_4:
	cmpq	$7, %rax
	jb	.LBB1_3
	jmpq	*%rax
	.size	second, .Lfunc_end1-second
"""

ARM = """
	.type	tile,@function
tile:
	stp	d9, d8, [sp, #-16]!
.LBB0_1:
	ldr	q0, [x0], #16
	sdot	v3.4s, v0.16b, v1.4b[0]
	str	q3, [sp, #32]                  // 16-byte Folded Spill
	ldr	x9, [sp, #8]
	subs	x1, x1, #1
	b.ne	.LBB0_1
	tbnz	w3, #0, .LBB0_3
	ret
.LBB0_3:
	cbnz	x4, .LBB0_3
	b	.LBB0_1
	.size	tile, .Lfunc_end0-tile
"""


def test_x86_is_read() -> None:
    first, second = assembly.functions(X86)
    assert (first.name, second.name) == ("first", "second")
    assert [len(loop.blocks) for loop in first.loops()] == [3, 1]
    (inner,) = first.innermost_loops()
    assert inner.count(r"vpdpbusd .*ymm") == 1
    # Without a frame pointer %rbp is an ordinary register; a scalar may be on the stack.
    assert inner.spills() == ["vmovdqu64 64(%rsp), %zmm2"]
    (loop,) = second.innermost_loops()
    assert loop.blocks == {1, 2, 4}
    assert loop.spills() == ["vmovups %ymm1, -32(%rbp)"]


def test_aarch64_is_read() -> None:
    (tile,) = assembly.functions(ARM)
    assert [len(loop.blocks) for loop in tile.loops()] == [4, 1]
    (inner,) = tile.innermost_loops()
    assert [str(each) for each in inner.instructions] == ["cbnz x4, .LBB0_3"]
    outer = tile.loops()[0]
    assert outer.count(r"sdot v\d+\.4s") == 1
    assert outer.spills() == ["str q3, [sp, #32]"]
