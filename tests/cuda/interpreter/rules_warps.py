"""Instructions that the lanes of a warp execute together."""

from __future__ import annotations

import re

from tests.cuda.interpreter.emitter import Emitter, braced, rule
from tests.cuda.interpreter.program import Instruction


def _unguarded(i: Instruction) -> None:
    if i.guard:
        raise ValueError("guarded")


@rule("shfl")
def _shfl(e: Emitter, i: Instruction) -> None:
    _unguarded(i)
    mode = i.options[1]
    value, lane, clamp, mask = i.operands[1:]
    parts = ", ".join([e.get(value, "b32"), *(e.get(each, "u32") for each in (lane, clamp, mask))])
    name = e.temporary()
    e.write(f"{name} = shuffle(x.warps(w), '{mode}', {parts})")
    for index, target in enumerate(i.operands[0].split("|")):
        e.put(target, f"{name}[{index}]", ("b32", "pred")[index])


@rule("vote")
def _vote(e: Emitter, i: Instruction) -> None:
    _unguarded(i)
    mode = i.options[1]
    negated = i.operands[1].startswith("!")
    predicate = ("~" if negated else "") + e.get(i.operands[1].lstrip("!"), "pred")
    e.result(i, f"vote(x.warps(w), '{mode}', {predicate}, {e.get(i.operands[2], 'u32')})", i.kind)


@rule("activemask")
def _activemask(e: Emitter, i: Instruction) -> None:
    _unguarded(i)
    e.result(i, "active_mask(x.warps(w))", "b32")


@rule("redux")
def _redux(e: Emitter, i: Instruction) -> None:
    _unguarded(i)
    parts = ", ".join([e.get(i.operands[1], i.kind), e.get(i.operands[2], "u32")])
    e.result(i, f"reduce_lanes(x.warps(w), '{i.options[1]}', {parts})")


@rule("bar")
def _warp_barrier(e: Emitter, i: Instruction) -> None:
    _unguarded(i)
    e.write(f"x.warp_barrier(w, {e.get(i.operands[0], 'u32')})")


@rule("ldmatrix")
def _ldmatrix(e: Emitter, i: Instruction) -> None:
    _unguarded(i)
    names = braced(i.operands[0])
    if f"x{len(names)}" not in i.options or "m8n8" not in i.options or i.kind != "b16":
        raise ValueError("shape")
    got = e.temporary()
    transposed = "trans" in i.options
    e.write(f"{got} = load_matrices(x, w, {e.address(i.operands[1])}, {len(names)}, {transposed}, {i.line})")
    for index, name in enumerate(names):
        e.put(name, f"{got}[{index}]", "b32")


@rule("mma")
def _mma(e: Emitter, i: Instruction) -> None:
    _unguarded(i)
    shape = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", i.options[2])
    if i.options[3:5] != ("row", "col") or not shape:
        raise ValueError("layout")
    kinds = i.options[-4:]
    register_kinds = ("f32" if kinds[0] == "f32" else "s32", "b32", "b32", "f32" if kinds[3] == "f32" else "s32")
    lists = [
        [e.get(each, kind) for each in braced(part)] for part, kind in zip(i.operands, register_kinds, strict=True)
    ]
    got = e.temporary()
    a, b, c = (f"[{', '.join(part)}]" for part in lists[1:])
    e.write(f"{got} = multiply_matrices(x.warps(w), {tuple(int(n) for n in shape.groups())}, {kinds}, {a}, {b}, {c})")
    for index, name in enumerate(braced(i.operands[0])):
        e.put(name, f"{got}[{index}]", register_kinds[0])
