"""Loads, stores, atomics, asynchronous copies and what orders them."""

from __future__ import annotations

from tests.cuda.interpreter.emitter import VALUE_TYPES, Emitter, braced, rule
from tests.cuda.interpreter.program import Instruction

SPACES = ("global", "shared", "local", "const", "param")
VECTORS = {"v2": 2, "v4": 4}
SILENT = {  # Options that do not change what an access does.
    *("nc", "weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "L1_no_allocate"),
    *("L1_evict_last", "L1_evict_first", "L2_64B", "L2_128B", "L2_256B", "ca", "cg", "cs", "lu", "cv", "wb", "wt"),
}


def _space(i: Instruction) -> str:
    return next((option.split("_")[0] for option in i.options if option.split("_")[0] in SPACES), "generic")


def _check(i: Instruction, *known: str) -> None:
    unknown = {option for option in i.options if option.split("_")[0] not in SPACES} - SILENT - set(known)
    if unknown:
        raise ValueError(f"option {', '.join(sorted(unknown))}")


def _mask(e: Emitter, i: Instruction) -> str:
    return e.guard(i) or "None"


@rule("ld", "ldu")
def _ld(e: Emitter, i: Instruction) -> None:
    _check(i, i.kind, *VECTORS)
    space = _space(i)
    if space == "param":
        name = i.operands[1][1:-1].strip()
        e.result(i, f"x.parameters[{name!r}].astype({e.dtype(i.kind)})")
        return
    names = braced(i.operands[0])
    size = VALUE_TYPES[i.kind].itemsize * len(names)
    flags = [option for option in i.options if option in ("nc", "volatile", "acquire", "relaxed")]
    got = e.temporary()
    e.write(f"{got} = x.{space}_memory.load({e.address(i.operands[1])}, w, {size}, {_mask(e, i)}, {i.line}, {flags})")
    if len(names) == 1:
        e.put(names[0], f"{got}.view({e.dtype(i.kind)})", i.kind, e.guard(i))
        return
    e.write(f"{got} = columns({got}, {e.dtype(i.kind)}, {len(names)})")
    for index, name in enumerate(names):
        e.put(name, f"{got}[{index}]", i.kind, e.guard(i))


@rule("st")
def _st(e: Emitter, i: Instruction) -> None:
    _check(i, i.kind, *VECTORS)
    names = braced(i.operands[1])
    size = VALUE_TYPES[i.kind].itemsize * len(names)
    values = ", ".join(e.get(name, i.kind) for name in names)
    packed = f"pack([{values}], {e.dtype(i.kind)}, {size}, x.n)"
    e.write(f"x.{_space(i)}_memory.store({e.address(i.operands[0])}, w, {packed}, {size}, {_mask(e, i)}, {i.line})")


@rule("atom", "red")
def _atom(e: Emitter, i: Instruction) -> None:
    operations = ("add", "inc", "dec", "min", "max", "and", "or", "xor", "exch", "cas")
    operation = next(option for option in i.options if option in operations)
    _check(i, i.kind, operation, "noftz")
    address, *values = i.operands[1:] if i.name == "atom" else i.operands
    numbers = ", ".join(e.get(value, i.kind) for value in values)
    flags = [option for option in i.options if option in ("acquire", "release", "acq_rel", "relaxed")]
    call = f"x.{_space(i)}_memory.atomic('{operation}', {e.address(address)}, w, [{numbers}], {e.dtype(i.kind)}"
    call += f", {_mask(e, i)}, {i.line}, {flags})"
    if i.name == "red":
        e.write(call)
    else:
        e.result(i, call)


@rule("membar", "fence")
def _fence(e: Emitter, i: Instruction) -> None:
    if not {"gl", "gpu", "sys"} & {*i.options}:
        return
    if "proxy" not in i.options:
        e.write(f"x.fence(w, {_mask(e, i)})")


@rule("prefetch", "prefetchu", "nanosleep", "discard", "applypriority")
def _nothing(e: Emitter, i: Instruction) -> None:
    """Append nothing: a hint has no effect on results."""


@rule("griddepcontrol")
def _dependent_launch(e: Emitter, i: Instruction) -> None:
    e.write(f"x.{'wait_for_previous' if i.options[0] == 'wait' else 'let_next_start'}(w, {i.line})")


@rule("cp")
def _cp(e: Emitter, i: Instruction) -> None:
    if "bulk" in i.options:
        if "prefetch" not in i.options:
            raise ValueError("bulk")
        return
    if "commit_group" in i.options:
        e.write("x.copies.commit(w)")
    elif "wait_group" in i.options:
        e.write(f"x.copies.wait(w, {int(i.operands[0])}, {i.line})")
    elif "wait_all" in i.options:
        e.write(f"x.copies.commit(w); x.copies.wait(w, 0, {i.line})")
    else:
        size = int(i.operands[2])
        count = e.get(i.operands[3], "u32") if len(i.operands) > 3 else str(size)
        target, source = e.address(i.operands[0]), e.address(i.operands[1])
        e.write(f"x.copies.issue({target}, {source}, w, {size}, {count}, {_mask(e, i)}, {i.line})")
