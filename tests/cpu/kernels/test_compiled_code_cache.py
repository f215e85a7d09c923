"""Cache of compiled code: where it is, which files it trusts, and what a start imports."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from qwchat.cpu import compiled_forward
from qwchat.cpu.kernels.compile_costs import COSTS
from qwchat.cpu.kernels.kernel_store import KERNELS
from qwchat.cpu.kernels.thread_team import EntryPoints

ROOT = Path(__file__).resolve().parents[3]
COMPILE_ONE = """
from quant.native.backend import types
from quant.native.linker import callable_at, linker
from qwchat.cpu.kernels import jit
from qwchat.cpu.kernels.kernel_store import KERNELS
{sabotage}
before = len(KERNELS.load())
@jit.standalone(types.int64(types.int64))
def double(x):
    return 2 * x
print(KERNELS.writable_folder, before, len(KERNELS.load()), KERNELS.is_damaged())
assert callable_at(linker().addresses["qwchat_double"], 1)(21) == 42
@jit.kernel
def double_twice(x):
    return double(double(x))
assert double_twice(3) == 12
"""
SABOTAGE = """
def refuse(unit, symbol):
    raise AttributeError("Numba has changed")
jit.CompilationUnit.object_code = refuse
"""
ANSWER = """
import sys
from qwchat.cli.main import main
try:
    main(["-p", "Hello", "--max-tokens", "1", "--quiet"])
finally:
    print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


def run(cache: Path, text: str, root: Path = ROOT) -> list[str]:
    """Return what a program prints. It runs from a file, since Numba caches no code from elsewhere."""
    program_file = cache.parent / "program.py"
    program_file.write_text(text)
    environment = os.environ | {"QWCHAT_CACHE": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, program_file], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_code_is_compiled_once(tmp_path: Path) -> None:
    folder, *facts = run(tmp_path / "cache", COMPILE_ONE.format(sabotage=""))
    assert Path(folder).parent == tmp_path / "cache"
    assert facts == ["0", "1", "False"]
    assert run(tmp_path / "cache", COMPILE_ONE.format(sabotage=SABOTAGE)) == [folder, "1", "1", "False"]
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert (Path(folder) / "objects").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_damaged_code_is_compiled_again(tmp_path: Path) -> None:
    folder = run(tmp_path / "cache", COMPILE_ONE.format(sabotage=""))[0]
    path = Path(folder) / "objects"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert run(tmp_path / "cache", COMPILE_ONE.format(sabotage=""))[1:] == ["0", "1", "False"]
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_without_objects_from_numba_the_code_runs_uncached(tmp_path: Path) -> None:
    assert run(tmp_path / "cache", COMPILE_ONE.format(sabotage=SABOTAGE))[1:] == ["0", "0", "False"]


def test_two_installations_do_not_share_code(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for package in ("qwchat", "quant"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    text = "from qwchat.cpu.kernels.kernel_store import KERNELS; print(KERNELS.folder)"
    assert len({run(tmp_path / "cache", text, root)[0] for root in (ROOT, copy)}) == 2


def undefined_symbols(code: bytes) -> set[str]:
    """Return the names that an ELF64 object imports (System V ABI, chapter 4)."""
    assert code[:6] == b"\x7fELF\x02\x01"
    table, entry_size, entries = struct.unpack_from("<Q", code, 0x28)[0], *struct.unpack_from("<HH", code, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, table + entry_size * number) for number in range(entries)]
    names = set()
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        strings = sections[section[6]][4]
        for offset in range(section[4], section[4] + section[5], 24):
            name, _, _, home = struct.unpack_from("<IBBH", code, offset)
            if home == 0 and name:
                names.add(code[strings + name : code.index(b"\0", strings + name)].decode())
    return names


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF, and asks glibc")
def test_the_code_needs_nothing_but_itself_and_the_c_library() -> None:
    assert isinstance(compiled_forward.load_entry_points(), EntryPoints)
    kept = KERNELS.load()
    assert len(kept) > 5
    needed = set().union(*map(undefined_symbols, kept.values()))
    libraries = [ctypes.CDLL(name) for name in ("libc.so.6", "libm.so.6")]
    assert [name for name in needed - kept.keys() if not any(hasattr(each, name) for each in libraries)] == []


def test_parts_of_kernels_can_be_called_from_python_too() -> None:
    from qwchat.cpu.kernels import jit

    def next_of(x: int) -> int:
        return x + 1

    part = jit.inlined(next_of)

    def twice_next(x: int) -> int:
        return 2 * int(part(x))

    whole = jit.inlined(twice_next)
    assert whole(3) == 8  # compiled with the part inside it, which then has no wrapper for Python
    assert part(3) == 4


def test_every_kernel_has_a_cost_for_the_progress_bar() -> None:
    compiled_forward.load_entry_points()
    assert {f"qwchat_{name}" for name in COSTS} == set(KERNELS.load())
    assert min(COSTS.values()) > 0


@pytest.mark.slow
def test_a_warm_answer_imports_no_compiler() -> None:
    compiled_forward.load_entry_points()
    for _ in range(2):  # The first run may have to convert the embedded model.
        done = subprocess.run([sys.executable, "-c", ANSWER], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = done.stdout.splitlines()[-1]
    assert "'qwchat'" in modules
    for name in ("numba", "rich", "prompt_toolkit"):
        assert f"'{name}'" not in modules
