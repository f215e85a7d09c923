"""The compiler of the kernels: deterministic PTX with plain names, rounded as written. Needs `cuda-dev`."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.cuda.interpreter import Kernel as Interpreted
from tests.cuda.machine_code import needs_cuda_dev

pytestmark = [pytest.mark.slow, needs_cuda_dev]
if importlib.util.find_spec("numba_cuda"):
    from qwchat.cuda.kernels import instructions as p
    from qwchat.cuda.kernels.toolchain import A, F, I, U, compile_unit, cuda, device
    from qwchat.cuda.kernels.unit import TARGETS, Kernel, Unit
    from tests.cuda.machine_code import assemble

SM_80 = {"pack_f16x2", "mma_s8", "mma_u8s8", "mma_f16"}
SM_90 = {"wait_for_previous", "let_next_start"}
EXAMPLES = {"i": "I(n)", "u": "U(n)", "l": "x", "f": "F(n)"}


def instruction_names() -> list[str]:
    if not importlib.util.find_spec("numba_cuda"):
        return []
    return [name for name, value in vars(p).items() if type(value).__name__ == "_Intrinsic" and name != "address_of"]


def lowest_target(name: str) -> int:
    if name in SM_90:
        return 90
    return 80 if name in SM_80 or name.startswith("copy_") else 75


def kernel_that_uses(name: str):
    """Return a kernel that calls an instruction once and stores what it returns."""
    letters = p.SIGNATURES[name]
    arguments = ", ".join(EXAMPLES[letter] for letter in letters.arguments)
    call = f"p.{name}({arguments})"
    lines = ["def one(x, n):"]
    if not letters.result:
        lines += [f"    {call}"]
    elif len(letters.result) == 1:
        lines += [f"    p.{STORES[letters.result]}(x, {call})"]
    else:
        names = [f"r{index}" for index in range(len(letters.result))]
        lines += [f"    {', '.join(names)} = {call}"]
        lines += [f"    p.{STORES[letter]}(x, {each})" for letter, each in zip(letters.result, names, strict=True)]
    space = {"p": p, "U": U, "I": I, "F": F}
    exec("\n".join(lines), space)
    return space["one"]


STORES = {"i": "store1i", "u": "store1", "f": "store1f"}


@pytest.mark.parametrize("name", instruction_names())
def test_every_instruction_is_compiled_and_interpreted(name: str) -> None:
    target = lowest_target(name)
    text = compile_unit(Unit("one", (Kernel(kernel_that_uses(name), "li", 32, 1),)), target)
    assert "one" in assemble(text, target)
    Interpreted(text, "one")


def scaled(x, y, n):
    buffer = cuda.shared.array((2, 32), F)
    lane = I(cuda.threadIdx.x & 31)
    buffer[cuda.threadIdx.x >> 5, lane] = p.load1f(x + A(4 * cuda.threadIdx.x)) * F(3) + F(n)
    cuda.syncthreads()
    p.store1f(y + A(4 * cuda.threadIdx.x), buffer[1 - (cuda.threadIdx.x >> 5), lane])


def counted(x, y, n):
    buffer = cuda.shared.array(64, I)
    buffer[cuda.threadIdx.x] = I(n) + I(cuda.threadIdx.x)
    cuda.syncthreads()
    at = p.shared_address(p.address_of(buffer)) + U(252 - 4 * cuda.threadIdx.x)
    p.store1i(y + A(4 * cuda.threadIdx.x), p.shared_load1i(at))


def both() -> Unit:
    return Unit("both", (Kernel(scaled, "lli", 64, 1), Kernel(counted, "lli", 64, 1)))


@pytest.mark.parametrize("target", [75, 80, 90])
def test_two_kernels_of_a_file_do_not_clash(target: int) -> None:
    text = compile_unit(both(), target)
    assert text == compile_unit(both(), target)
    assert text.startswith(f".version {'7.8' if target == 90 else '7.4'}\n.target sm_{target}\n.address_size 64\n")
    assert text.count(".version") == 1
    assert "NumbaEnv" not in text
    assert "//" not in text
    assert re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", text) == [
        ("16", "scaled_shared_0", "256"),
        ("16", "counted_shared_0", "256"),
    ]
    assert set(assemble(text, target)) == {"scaled", "counted"}
    assert TARGETS == (75, 80, 90)


def test_nothing_is_fused_that_the_source_does_not_fuse() -> None:
    text = compile_unit(both(), 80)
    assert "mul.rn.f32" in text
    assert "add.rn.f32" in text
    assert "fma" not in text
    code = assemble(text, 80)["scaled"]
    assert code.count("FFMA") == 0
    assert code.count("FMUL") == code.count("FADD") == 1


def test_a_device_function_that_is_called_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    called = ".visible .func (.param .b32 r) helper() { ret; }\n.visible .entry mangled() { ret; }\n"
    monkeypatch.setattr(cuda, "compile", lambda *arguments, **options: (called, None))
    with pytest.raises(ValueError, match=r"kernel scaled: a device function is not inlined; use toolchain\.device"):
        compile_unit(both(), 80)


def test_device_functions_are_inlined() -> None:
    @device
    def triple(n):
        return I(3) * n

    def tripled(x, n):
        p.store1i(x, triple(triple(I(n))))

    text = compile_unit(Unit("one", (Kernel(tripled, "li", 32, 1),)), 80)
    assert ".func" not in text
    assert "call" not in text
