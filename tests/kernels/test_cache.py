"""Where compiled code is kept, what is trusted of it, and what a start imports."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwchat.kernels import objects
from qwchat.kernels.threads import Program
from qwchat.model import program

ROOT = Path(__file__).resolve().parents[2]
COMPILE_ONE = """
from numba import types
from qwchat.kernels import jit, objects
{sabotage}
before = len(objects.load())
@jit.standalone(types.int64(types.int64))
def double(x):
    return 2 * x
print(objects.writable_folder(), before, len(objects.load()), objects.is_damaged())
assert objects.callable_at(objects.linker().addresses["qwchat_double"], 1)(21) == 42
@jit.kernel
def double_twice(x):
    return double(double(x))
assert double_twice(3) == 12
"""
SABOTAGE = """
def refuse(symbol):
    raise AttributeError("Numba has changed")
jit._object_code = refuse
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
    """What a program writes; it lies in a file, since Numba keeps no code from elsewhere."""
    program_file = cache.parent / "program.py"
    program_file.write_text(text)
    environment = os.environ | {"QWCHAT_CACHE": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, program_file], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_code_is_compiled_once(tmp_path: Path) -> None:
    folder, *facts = run(tmp_path / "cache", COMPILE_ONE.format(sabotage=""))
    assert Path(folder).parent == tmp_path / "cache"
    assert facts == ["0", "1", "False"]
    assert run(tmp_path / "cache", COMPILE_ONE.format(sabotage=SABOTAGE)) == [folder, "1", "1", "False"]
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert (Path(folder) / "objects").stat().st_mode & 0o777 == 0o600


def test_damaged_code_is_compiled_again(tmp_path: Path) -> None:
    folder = run(tmp_path / "cache", COMPILE_ONE.format(sabotage=""))[0]
    path = Path(folder) / "objects"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert run(tmp_path / "cache", COMPILE_ONE.format(sabotage=""))[1:] == ["0", "1", "False"]
    assert path.read_bytes() == whole


def test_where_numba_gives_no_objects_the_code_runs_and_nothing_is_kept(tmp_path: Path) -> None:
    assert run(tmp_path / "cache", COMPILE_ONE.format(sabotage=SABOTAGE))[1:] == ["0", "0", "False"]


def test_two_installations_do_not_take_each_other_s_code(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for package in ("qwchat", "quant"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    text = "from qwchat.kernels import objects; print(objects.cache_folder())"
    assert len({run(tmp_path / "cache", text, root)[0] for root in (ROOT, copy)}) == 2


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private cache with two objects in it; the file."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(objects, "cache_folder", lambda: folder)
    monkeypatch.setattr(objects, "writable_folder", lambda: folder)
    objects.save({"a": b"first", "b": b""})
    assert objects.load() == {"a": b"first", "b": b""}
    return folder / "objects"


def test_saving_adds(store: Path) -> None:
    objects.save({"b": b"new", "c": b"third"})
    assert objects.load() == {"a": b"first", "b": b"new", "c": b"third"}
    assert not objects.is_damaged()
    assert [path.name for path in store.parent.iterdir()] == ["objects"]


def test_folders_that_nobody_uses_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "cache_folder", lambda: tmp_path / "kernels-now")
    monkeypatch.setattr(objects, "writable_folder", lambda: tmp_path / "kernels-now")
    ages = {"kernels-now": 90, "kernels-recent": 29, "kernels-old": 31, "kernels-theirs": 31, "models": 90}
    for name, days in ages.items():
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / "objects").write_bytes(b"code")
        when = time.time() - days * 86_400
        os.utime(tmp_path / name, (when, when))
    (tmp_path / "kernels-theirs").chmod(0o777)
    (tmp_path / "kernels-link").symlink_to(tmp_path / "models")
    objects.save({"a": b"first"})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"kernels-now", "kernels-recent", "kernels-theirs", "kernels-link", "models"}
    assert (tmp_path / "models" / "objects").exists()


def test_use_is_noted_once_a_day(store: Path) -> None:
    for days, noted in ((20, True), (0.5, False)):
        when = time.time() - days * 86_400
        os.utime(store.parent, (when, when))
        assert objects.load()
        assert (store.parent.stat().st_mtime > when + 60) is noted


@pytest.mark.parametrize("cut", [0, 1, 20, 100, -1, -5])
def test_a_cut_off_file_is_not_used(store: Path, cut: int) -> None:
    store.write_bytes(store.read_bytes()[:cut])
    assert objects.load() == {}
    assert objects.is_damaged()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"first", b"fIrst"),
        (b'"bytes": 5', b'"bytes": 4'),
        (b'"bytes": 5', b'"bytes": -5'),
        (b'"objects": [', b'"objects": [3, '),
        (b"first", b"first and more"),
    ],
)
def test_an_altered_file_is_not_used(store: Path, old: bytes, new: bytes) -> None:
    store.write_bytes(store.read_bytes().replace(old, new))
    assert objects.load() == {}
    assert objects.is_damaged()


def test_stale_code_is_not_used(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "cache_key", lambda: "another processor")
    assert objects.load() == {}


@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_others_could_have_written_is_not_used(store: Path, which: str) -> None:
    (store if which == "file" else store.parent).chmod(0o777)
    assert objects.load() == {}
    assert objects.is_damaged()


def test_another_user_s_file_is_not_used(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: store.stat().st_uid + 1)
    assert objects.load() == {}


def test_a_link_is_not_followed(store: Path) -> None:
    elsewhere = store.with_name("elsewhere")
    store.rename(elsewhere)
    store.symlink_to(elsewhere)
    assert objects.load() == {}


def test_saving_at_once_leaves_a_whole_file(store: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: objects.save({f"s{number}": bytes([number]) * 50_000}), range(40)))
    assert objects.load().keys() >= {"a", "b"}
    assert not objects.is_damaged()


def test_a_folder_that_cannot_be_used_is_replaced_by_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made below this")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for place in (blocked / "cache", open_to_all):
        monkeypatch.setattr(objects, "cache_folder", lambda place=place: place)
        private = objects.writable_folder.__wrapped__()
        assert "qwchat-kernels-" in private.name
        assert private.stat().st_mode & 0o777 == 0o700


def test_an_object_that_cannot_be_linked_counts_as_missing() -> None:
    assert objects.link({"qwchat_nonsense": b"this is no object file"}, ["qwchat_nonsense"]) is None
    assert objects.link({}, ["qwchat_absent"]) is None


def undefined_symbols(code: bytes) -> set[str]:
    """Names that an ELF64 object expects of others (System V ABI, chapter 4)."""
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF, and asks glibc")
def test_the_code_needs_nothing_but_itself_and_the_c_library() -> None:
    assert isinstance(program.load_program(), Program)
    kept = objects.load()
    assert len(kept) > 5
    needed = set().union(*map(undefined_symbols, kept.values()))
    libraries = [ctypes.CDLL(name) for name in ("libc.so.6", "libm.so.6")]
    assert [name for name in needed - kept.keys() if not any(hasattr(each, name) for each in libraries)] == []


def test_parts_of_kernels_can_be_called_from_python_too() -> None:
    from qwchat.kernels import jit

    def next_of(x: int) -> int:
        return x + 1

    part = jit.inlined(next_of)

    def twice_next(x: int) -> int:
        return 2 * int(part(x))

    whole = jit.inlined(twice_next)
    assert whole(3) == 8  # compiled with the part in it, which has no wrapper for Python then
    assert part(3) == 4


def test_all_kernels_are_counted_for_the_progress() -> None:
    from qwchat.kernels import jit

    program.load_program()
    assert jit.stages() == len(objects.load())


def test_a_warm_answer_imports_no_compiler() -> None:
    program.load_program()
    for _ in range(2):  # The first may have to convert the embedded model.
        done = subprocess.run([sys.executable, "-c", ANSWER], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = done.stdout.splitlines()[-1]
    assert "'qwchat'" in modules
    for name in ("numba", "rich", "prompt_toolkit"):
        assert f"'{name}'" not in modules
