"""Arithmetic, logic and comparisons."""

from __future__ import annotations

from tests.cuda.interpreter.emitter import VALUE_TYPES, Emitter, braced, rule
from tests.cuda.interpreter.program import Instruction

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS.update({"lo": "<", "ls": "<=", "hi": ">", "hs": ">="})
OPPOSITES = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
PAIRS = {"f16x2": "f16", "bf16x2": "bf16"}


def _operands(e: Emitter, i: Instruction) -> list[str]:
    return [e.get(operand, i.kind) for operand in i.operands[1:]]


def _is_float(kind: str) -> bool:
    return kind in ("f32", "f64")


def _finished(i: Instruction, text: str) -> str:
    """Return a result with `.ftz` and `.sat` applied."""
    text = f"flush({text})" if "ftz" in i.options else text
    return f"saturate({text})" if "sat" in i.options else text


def _flushed(e: Emitter, i: Instruction) -> list[str]:
    return [f"flush({text})" if "ftz" in i.options else text for text in _operands(e, i)]


@rule("add", "sub")
def _add(e: Emitter, i: Instruction) -> None:
    sign = "+" if i.name == "add" else "-"
    _only(i, "rn", "ftz", "sat", i.kind)
    if i.kind in PAIRS or i.kind in ("f16", "bf16"):
        e.result(i, f"halves('{i.name}', '{PAIRS.get(i.kind, i.kind)}', {', '.join(_operands(e, i))})")
    else:
        a, b = _flushed(e, i)
        e.result(i, _finished(i, f"({a} {sign} {b})"))


def _only(i: Instruction, *known: str) -> None:
    """Raise ValueError if the instruction has an option that is not known."""
    unknown = set(i.options) - set(known)
    if unknown:
        raise ValueError(f"option {', '.join(sorted(unknown))}")


@rule("mul", "mad")
def _mul(e: Emitter, i: Instruction) -> None:
    if i.kind in PAIRS or i.kind in ("f16", "bf16"):
        e.result(i, f"halves('mul', '{PAIRS.get(i.kind, i.kind)}', {', '.join(_operands(e, i))})")
        return
    if _is_float(i.kind):
        _only(i, "rn", "ftz", "sat", i.kind)
        a, b = _flushed(e, i)
        e.result(i, _finished(i, f"({a} * {b})"))
        return
    _only(i, "lo", "hi", "wide", i.kind)
    a, b = (e.get(operand, i.kind) for operand in i.operands[1:3])
    kind = i.kind
    if "wide" in i.options:
        kind = i.kind[0] + str(2 * int(i.kind[1:]))
        text = f"({a}).astype({e.dtype(kind)}) * ({b}).astype({e.dtype(kind)})"
    elif "hi" in i.options:
        text = f"multiply_high({a}, {b})"
    else:
        text = f"({a} * {b})"
    if i.name == "mad":
        text = f"({text} + {e.get(i.operands[3], kind)})"
    e.result(i, text, kind)


@rule("fma")
def _fma(e: Emitter, i: Instruction) -> None:
    _only(i, "rn", "ftz", "sat", i.kind)
    if i.kind == "f32":
        e.result(i, _finished(i, f"fma32({', '.join(_flushed(e, i))})"))
    else:
        e.result(i, f"halves('fma', '{PAIRS.get(i.kind, i.kind)}', {', '.join(_operands(e, i))})")


@rule("div", "rem")
def _div(e: Emitter, i: Instruction) -> None:
    a, b = _flushed(e, i)
    if _is_float(i.kind):
        _only(i, "rn", "approx", "full", "ftz", i.kind)
        e.result(i, _finished(i, f"({a} / {b})"))
    else:
        e.result(i, f"{'divide' if i.name == 'div' else 'remainder'}({a}, {b})")


@rule("neg", "abs", "not", "and", "or", "xor")
def _unary_or_logic(e: Emitter, i: Instruction) -> None:
    parts = _operands(e, i)
    if i.kind in PAIRS or i.kind in ("f16", "bf16"):
        e.result(i, f"halves('{i.name}', '{PAIRS.get(i.kind, i.kind)}', {', '.join(parts)})")
        return
    signs = {"and": "&", "or": "|", "xor": "^"}
    if i.name in signs:
        e.result(i, f"({parts[0]} {signs[i.name]} {parts[1]})")
    else:
        e.result(i, _finished(i, {"neg": "(-{})", "abs": "abs_({})", "not": "(~{})"}[i.name].format(parts[0])))


@rule("min", "max")
def _min(e: Emitter, i: Instruction) -> None:
    a, b = _flushed(e, i)
    if i.kind in PAIRS or i.kind in ("f16", "bf16"):
        e.result(i, f"halves('{i.name}', '{PAIRS.get(i.kind, i.kind)}', {a}, {b})")
    elif _is_float(i.kind):
        e.result(i, f"{i.name}_{'nan' if 'NaN' in i.options else 'number'}({a}, {b})")
    else:
        e.result(i, f"{i.name}imum({a}, {b})")


@rule("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh")
def _function(e: Emitter, i: Instruction) -> None:
    if i.kind != "f32":
        raise ValueError(i.kind)
    _only(i, "approx", "rn", "ftz", i.kind)
    e.result(i, _finished(i, f"{i.name}({_flushed(e, i)[0]})"))


@rule("shl", "shr")
def _shift(e: Emitter, i: Instruction) -> None:
    value = e.get(i.operands[1], i.kind)
    bits = 8 * VALUE_TYPES[i.kind].itemsize
    if i.operands[2].isdigit() and int(i.operands[2]) < bits:
        sign = "<<" if i.name == "shl" else ">>"
        e.result(i, f"({value} {sign} {e.get(i.operands[2], i.kind)})")
    else:
        e.result(i, f"shift_{'left' if i.name == 'shl' else 'right'}({value}, {e.get(i.operands[2], 'u32')})")


@rule("shf")
def _funnel(e: Emitter, i: Instruction) -> None:
    direction, mode, _ = i.options
    e.result(i, f"funnel('{direction}', '{mode}', {', '.join(e.get(each, 'u32') for each in i.operands[1:])})")


@rule("bfe", "bfi", "popc", "clz", "brev")
def _bits(e: Emitter, i: Instruction) -> None:
    values = 2 if i.name == "bfi" else 1
    parts = [e.get(each, i.kind) for each in i.operands[1 : 1 + values]]
    parts += [e.get(each, "u32") for each in i.operands[1 + values :]]
    e.result(i, f"{i.name}({', '.join(parts)})", "u32" if i.name in ("popc", "clz") else i.kind)


@rule("prmt", "lop3", "dp4a")
def _bytes(e: Emitter, i: Instruction) -> None:
    if i.name == "prmt":
        _only(i, "b32")
        a, b, selector = _operands(e, i)
        if i.operands[3] in e.program.registers:
            e.result(i, f"permute({a}, {b}, {selector})")
        else:
            e.result(i, f"permute_alike({a}, {b}, {int(i.operands[3], 0) % 2**32})")
    elif i.name == "lop3":
        parts = [e.get(each, "b32") for each in i.operands[1:4]]
        e.result(i, f"lookup3({int(i.operands[4], 0)}, {', '.join(parts)})")
    else:
        a, b = i.options
        kinds = (a, b, "s32" if "s" in (a[0], b[0]) else "u32")
        parts = [e.get(each, kind) for each, kind in zip(i.operands[1:], kinds, strict=True)]
        e.result(i, f"dot4({', '.join(parts)})", kinds[2])


@rule("setp")
def _setp(e: Emitter, i: Instruction) -> None:
    how = i.options[0]
    a, b = (f"flush({e.get(each, i.kind)})" if "ftz" in i.options else e.get(each, i.kind) for each in i.operands[1:3])
    if how in COMPARISONS:
        text = f"({a} {COMPARISONS[how]} {b})"
        # A comparison with NaN is false, also "not equal".
        text = f"({text} & ({a} == {a}) & ({b} == {b}))" if how == "ne" and _is_float(i.kind) else text
    elif how in OPPOSITES:
        text = f"(~({a} {OPPOSITES[how]} {b}))"
        text = f"({text} | ({a} != {a}) | ({b} != {b}))" if how == "equ" else text
    else:
        text = {"num": f"(({a} == {a}) & ({b} == {b}))", "nan": f"(({a} != {a}) | ({b} != {b}))"}[how]
    targets = i.operands[0].split("|")
    signs = {"and": "&", "or": "|", "xor": "^"}
    combined = next((each for each in i.options if each in signs), None)
    name = e.temporary()
    e.write(f"{name} = {text}")
    third = i.operands[3] if combined else ""
    other = ("~" + e.local(third[1:]) if third.startswith("!") else e.local(third)) if combined else ""
    for target, one in zip(targets, (name, f"~{name}"), strict=False):
        e.put(target, f"({one}) {signs[combined]} {other}" if combined else one, "pred", e.guard(i))


@rule("selp")
def _selp(e: Emitter, i: Instruction) -> None:
    a, b = (e.get(each, i.kind) for each in i.operands[1:3])
    e.result(i, f"where({e.local(i.operands[3])}, {a}, {b})")


@rule("mov")
def _mov(e: Emitter, i: Instruction) -> None:
    source, target = i.operands[1], i.operands[0]
    if source.startswith("{"):
        parts = braced(source)
        small = f"b{int(i.kind[1:]) // len(parts)}"
        e.result(
            i,
            f"join([{', '.join(e.get(each, small) for each in parts)}], {e.dtype('b' + i.kind[1:])})",
            "b" + i.kind[1:],
        )
    elif target.startswith("{"):
        parts = braced(target)
        small = f"b{int(i.kind[1:]) // len(parts)}"
        name = e.temporary()
        e.write(f"{name} = split({e.get(source, 'b' + i.kind[1:])}, {e.dtype(small)}, {len(parts)})")
        for index, each in enumerate(parts):
            e.put(each, f"{name}[{index}]", small, e.guard(i))
    else:
        e.result(i, e.get(source, i.kind))


@rule("cvta")
def _cvta(e: Emitter, i: Instruction) -> None:
    space = next(each for each in i.options if each in ("global", "shared", "local", "const"))
    sign = "-" if "to" in i.options else "+"
    value = e.get(i.operands[1], i.kind)
    e.result(i, value if space in ("global", "const") else f"({value} {sign} {space.upper()}_WINDOW)")


@rule("cvt")
def _cvt(e: Emitter, i: Instruction) -> None:
    options = [each for each in i.options if each in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat")]
    if i.kind == "f32" and i.options[-2] in PAIRS:
        high, low = (e.get(each, "f32") for each in i.operands[1:3])
        e.result(i, f"pack_halves({high}, {low}, '{PAIRS[i.options[-2]]}', {options})", "b32")
        return
    if "pack" in i.options:
        raise ValueError("pack")
    to, source = i.options[-2], i.options[-1]
    _only(i, *options, to, source)
    value = e.get(i.operands[1], source)
    simple = source[0] in "us" and ("sat" not in options if to[0] in "us" else (to, options) == ("f32", ["rn"]))
    if simple or (to, source) == ("f32", "f16"):
        e.result(i, f"({value}).astype({e.dtype(to)})", to)
    else:
        e.result(i, f"convert({value}, '{source}', '{to}', {options})", to)
