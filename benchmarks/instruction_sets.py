"""Version of a rival's library, and the instruction sets of this machine that it was built without."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measurements import CPU_INFO

# Names in `llama_print_system_info`, and flags in /proc/cpuinfo.
NAMES = {
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
}
IK_REMEDY = 'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary ik-llama-cpp-python ik-llama-cpp-python'


@dataclass(frozen=True)
class LibraryBuild:
    """Version of a package, and the instruction sets that this machine has and its library does not use."""

    version: str
    unused: list[str]

    def warning(self, name: str) -> str:
        """Return a line that says how a rival is slower than it can be, or "" if it is not."""
        if not self.unused:
            return ""
        return f"{name} was built without {', '.join(self.unused)}, which this machine has; {IK_REMEDY}"


def ik_build(python: Path) -> LibraryBuild:
    """Return the build of ik_llama.cpp that a Python has. Raises SystemExit if it has none."""
    try:
        ran = subprocess.run([str(python), "-m", "benchmarks.ik_engine"], capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"cannot run {python}: {error.strerror}") from None
    if ran.returncode:
        last = ran.stderr.strip().rpartition("\n")[2]
        raise SystemExit(f"{python}: {last}; install ik-llama-cpp-python there")
    about = json.loads(ran.stdout)
    return LibraryBuild(about["version"], unused_instructions(about["system_info"], processor_flags()))


def processor_flags(cpu_info: Path = CPU_INFO) -> set[str]:
    """Return the flags of the first processor; none where /proc/cpuinfo is missing or has no flags."""
    try:
        lines = cpu_info.read_text("utf-8").splitlines()
    except OSError:
        return set()
    fields = (line.partition(":") for line in lines)
    return next((set(value.split()) for key, _, value in fields if key.strip() == "flags"), set())


def unused_instructions(system_info: str, flags: set[str]) -> list[str]:
    """Return the instruction sets that the machine has and the library does not use.

    Args:
        system_info: text such as "AVX = 1 | AVX2 = 1 | AVX512 = 0 | ".
        flags: flags of the processor.
    """
    used = {name for name, value in re.findall(r"(\w+) = (\d)", system_info) if value == "1"}
    return [name for name, flag in NAMES.items() if flag in flags and name not in used]
