"""Instruction sets that a rival's library does not use."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.instruction_sets import LibraryBuild, ik_build, processor_flags, unused_instructions

INFO = "AVX = 1 | AVX_VNNI = 0 | AVX2 = 1 | AVX512 = 0 | AVX512_VNNI = 0 | FMA = 1 | F16C = 1 | NEON = 0 | "


def executable(file: Path, script: str) -> Path:
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def test_what_the_machine_has_and_the_library_does_not() -> None:
    assert unused_instructions(INFO, {"avx2", "fma", "f16c", "avx512f", "avx512_vnni"}) == ["AVX512", "AVX512_VNNI"]
    assert unused_instructions(INFO, {"avx2", "fma", "f16c"}) == []
    assert unused_instructions(f"CPU : {INFO} AVX512 = 1", {"avx2", "avx512f"}) == []
    assert unused_instructions("", {"avx2"}) == ["AVX2"]


def test_flags_of_the_first_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: other\n")
    assert processor_flags(tmp_path / "cpuinfo") == {"fpu", "avx2"}
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: asimd\n")
    assert processor_flags(tmp_path / "arm") == processor_flags(tmp_path / "missing") == set()


def test_the_warning_names_the_remedy() -> None:
    assert LibraryBuild("1", []).warning("ik") == ""
    warning = LibraryBuild("1", ["AVX512", "AVX512_VNNI"]).warning("ik")
    assert warning.startswith("ik was built without AVX512, AVX512_VNNI, which this machine has")
    assert "-DGGML_NATIVE=ON" in warning


def test_the_build_is_asked_of_the_other_python(tmp_path: Path) -> None:
    answer = '{"version": "0.1.5", "system_info": "AVX2 = 1"}'
    python = executable(tmp_path / "python", f"""[ "$2" = benchmarks.ik_engine ] && echo '{answer}'""")
    build = ik_build(python)
    assert build.version == "0.1.5"
    assert "AVX2" not in build.unused


def test_a_python_without_the_package_is_refused(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", "echo \"ModuleNotFoundError: No module named 'ik'\" >&2; exit 1")
    with pytest.raises(SystemExit, match="No module named 'ik'; install ik-llama-cpp-python there"):
        ik_build(python)
    with pytest.raises(SystemExit, match=r"cannot run .*missing: No such file"):
        ik_build(tmp_path / "missing")
