"""`qwchat doctor`: what the machine offers, what is set up, and what prevents replies."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quant.errors import QuantError
from quant.machine import processor_count
from quant.units import data_size
from qwchat import models_folder
from qwchat.characters import sanitise
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import requested_model
from qwchat.cli.error_messages import error_message
from qwchat.cli.exit_codes import ExitCode, is_expected
from qwchat.cli.json_output import json_line
from qwchat.cli.machine_options import DoctorOptions
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.errors import GpuError, QwchatError

if TYPE_CHECKING:
    from qwchat.store.recommendation import Recommendation

CheckState = Literal["ok", "warning", "error"]

_LOW_MEMORY_BYTES = 1 << 30
_LOW_DISK_BYTES = 1 << 30
_MAX_NAMED = 5
_CPUINFO = Path("/proc/cpuinfo")
_COLUMNS = (
    Column(styles={"ok": "green", "warning": "yellow", "error": "red"}),
    Column(style="bold"),
    Column(wrap=16),
)
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class CheckResult:
    """Result of one check; `remedy` says what to do if the state is not "ok"."""

    name: str
    state: CheckState
    found: str
    remedy: str = ""


def run(options: DoctorOptions, dependencies: Dependencies) -> int:
    """Run every check and print a row for each, or one JSON object. Return 1 if something prevents replies."""
    streams = Streams()
    checks = list(_checks(dependencies))
    failed = any(check.state == "error" for check in checks)
    if options.json:
        streams.write(json_line({"ok": not failed, "checks": [asdict(check) for check in checks]}) + "\n")
    else:
        tables = TableWriter(streams)
        tables.write(tables.table(_COLUMNS, [*_rows(checks)]) if tables.drawn else "\n".join(_lines(checks)))
    return ExitCode.RUNTIME if failed else ExitCode.OK


def _rows(checks: list[CheckResult]) -> Iterator[tuple[str, str, str]]:
    for check in checks:
        yield check.state, check.name, check.found
        if check.remedy:
            yield "", "", check.remedy


def _lines(checks: list[CheckResult]) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"{check.state:<8} {check.name:<{width}}  {sanitise(check.found)}"
        if check.remedy:
            yield f"{'':9}{'':{width}}  {sanitise(check.remedy)}"


def _checks(dependencies: Dependencies) -> Iterator[CheckResult]:
    for name, check in (
        ("program", _program),
        ("processor", lambda: _processor(dependencies)),
        ("threads", _threads),
        ("memory", _memory),
        ("GPU", _gpu),
        ("kernels", lambda: _kernels(dependencies)),
        ("models", _models),
        ("default model", _default_model),
        ("recommended", lambda: _recommended_model(dependencies)),
        ("disk", _disk),
        ("settings", _settings),
        ("sessions", _sessions),
        ("terminal", _terminal),
    ):
        yield _run_check(name, check)


def _run_check(name: str, check: Callable[[], tuple[CheckState, str, str]]) -> CheckResult:
    """Run one check. One that raises must not hide the others."""
    try:
        return CheckResult(name, *check())
    except (QwchatError, QuantError) as error:
        return CheckResult(name, "error", error_message(error))
    except (OSError, ValueError) as error:
        return CheckResult(name, "warning", f"check failed: {error}")


def _program() -> tuple[CheckState, str, str]:
    from importlib.metadata import version

    import qwchat

    packages = ", ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite", "numpy", "tokenizers"))
    found = f"qwchat {qwchat.__version__}, Python {platform.python_version()}, {platform.system()} ({packages})"
    return "ok", found, ""


def _processor(dependencies: Dependencies) -> tuple[CheckState, str, str]:
    from quant.native.simd_level import supported_levels

    level = dependencies.simd()
    best = supported_levels()[0]
    found = f"{_processor_name()}, SIMD level {level}"
    if level != best:
        return "warning", found, f"unset QWCHAT_SIMD, which forces {level}, to use the faster {best}"
    if level == "portable":
        return "warning", found, "this processor lacks the dot-product instructions that fast kernels need"
    return "ok", found, ""


def _processor_name() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _threads() -> tuple[CheckState, str, str]:
    from qwchat.cpu.kernels.thread_counts import default_threads

    threads = default_threads()
    found = f"{threads} by default, {processor_count()} processors"
    load = os.getloadavg()[0]
    if load > threads:
        return "warning", f"{found}, load {load:.1f}", "other programs use the processor: replies will be slower"
    return "ok", found, ""


def _memory() -> tuple[CheckState, str, str]:
    from qwchat.cpu.memory import available_memory, total_memory

    available = available_memory()
    if available is None:
        return "ok", "the system does not report free memory", ""
    total = total_memory()
    found = f"{data_size(available)} free" + (f" of {data_size(total)}" if total else "")
    if available < _LOW_MEMORY_BYTES:
        return "warning", found, "close other programs, or use a small model and a short context (--ctx)"
    return "ok", found, ""


def _gpu() -> tuple[CheckState, str, str]:
    """Name the GPUs. A machine without an NVIDIA driver is in order; a driver that cannot be used is not."""
    from qwchat.cuda.device import find_gpus
    from qwchat.cuda.libcuda import LibCuda

    try:
        gpus = find_gpus(LibCuda())
        for gpu in gpus:
            _ = gpu.target  # Raises GpuError if it is too old.
    except GpuError as error:
        has_driver = _NVIDIA_DRIVER.is_file() or shutil.which("nvidia-smi") is not None
        problem, _, remedy = error_message(error).partition(": ")
        return ("warning", problem, remedy) if has_driver else ("ok", "no NVIDIA GPU: the CPU computes", "")
    return "ok", ", ".join(f"{gpu.name}, {data_size(gpu.total_memory)}" for gpu in gpus), ""


def _kernels(dependencies: Dependencies) -> tuple[CheckState, str, str]:
    from qwchat.cpu.kernels import kernel_store

    problem = dependencies.cache_problem()
    if problem is not None:
        return "warning", f"not cached: {problem}", ""
    folder = kernel_store.KERNELS.folder
    if not dependencies.compiled():
        return "ok", f"not compiled yet: the first reply compiles them, once, into {folder}", ""
    return "ok", f"compiled, {data_size(_size(folder.parent))} in {folder.parent}", ""


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _models() -> tuple[CheckState, str, str]:
    folder = models_folder.models_folder()
    count = len(models_folder.available())
    found = f"{count} in {folder}, including the built-in model"
    if not _is_writable(folder):
        return "warning", found, "the folder is not writable: set QWCHAT_MODELS to one of your own"
    return "ok", found, ""


def _is_writable(folder: Path) -> bool:
    """Return whether files can be created in `folder`, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _default_model() -> tuple[CheckState, str, str]:
    from quant.container import open_model
    from qwchat.placement import preview

    found = models_folder.locate(requested_model(None))
    if not found.converted:
        if not models_folder.is_model(found.destination):
            return "ok", f"{found.name}, converted on first use", ""
        found = models_folder.LocatedModel(found.name, found.destination, converted=True)
    try:
        folder = open_model(found.path)
    except Exception as error:
        if not is_expected(error):
            raise
        return "error", f"{found.name} is damaged: {error}", "convert it again"
    where = preview(folder).explanation
    return "ok", f"{found.name}, {folder.preset}, {data_size(folder.total_bytes)}, runs on {where}", ""


def _recommended_model(dependencies: Dependencies) -> tuple[CheckState, str, str]:
    """Name the model of the catalogue to take here: on the GPU if it holds one, otherwise on the CPU."""
    from qwchat.cpu.kernels.thread_counts import default_threads
    from qwchat.cpu.memory import total_memory
    from qwchat.store.recommendation import fitting_card, fitting_machine, recommend

    card, memory = dependencies.card(), total_memory()
    if card is not None and (on_card := fitting_card(card)):
        model = on_card[-1]
        return "ok", f"{_described(model)} on {card.name} (qwchat pull {model.name})", ""
    if memory is None:
        return "ok", "unknown, since the system reports no memory", ""
    fitting = fitting_machine(memory, dependencies.quick_bandwidth(default_threads()))
    chosen = recommend(fitting)
    if chosen is None:
        return "ok", "mini; no model of the catalogue fits", ""
    found = f"{_described(chosen)} (qwchat pull {chosen.name})"
    largest = fitting[-1]
    return "ok", found if largest is chosen else f"{found}; the largest that fits is {_described(largest)}", ""


def _described(model: Recommendation) -> str:
    speed = model.tokens_per_second
    return f"{model.name} at {model.preset}: {data_size(model.needed)}" + (
        "" if speed is None else f", at most {speed:.{0 if speed >= 10 else 1}f} tok/s"
    )


def _disk() -> tuple[CheckState, str, str]:
    folder = models_folder.models_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{data_size(free)} free for models"
    return ("ok", found, "") if free >= _LOW_DISK_BYTES else ("warning", found, "a converted 7B model needs 4.6 GB")


def _settings() -> tuple[CheckState, str, str]:
    from qwchat.settings import config_files
    from qwchat.settings.resolve import resolve

    notices = resolve().notices  # As before a reply: variables and the persona can be wrong, too.
    project = config_files.find_project_file()
    if notices:
        return "warning", "; ".join(notices), "if you trust it, make yourself its owner" if project.notices else ""
    there = [path for path in (config_files.user_config_file(), project.path) if path is not None and path.is_file()]
    return "ok", ", ".join(map(str, there)) or f"none set; their file would be {config_files.user_config_file()}", ""


def _sessions() -> tuple[CheckState, str, str]:
    from qwchat.conversation.session_store import SessionStore

    store = SessionStore()
    entries = store.entries()
    broken = [entry for entry in entries if entry.trouble]
    found = f"{len(entries)} in {store.folder}"
    if broken:
        named = ", ".join(entry.id for entry in broken[:_MAX_NAMED])
        return "warning", f"{found}, {len(broken)} unreadable: {named}", f"{broken[0].trouble}"
    if not _is_writable(store.folder):
        return "warning", found, "the folder is not writable: set QWCHAT_SESSIONS to one of your own"
    return "ok", found, ""


def _terminal() -> tuple[CheckState, str, str]:
    names = ("input", "output", "errors")
    streams = (sys.stdin, sys.stdout, sys.stderr)
    seen = [name for name, stream in zip(names, streams, strict=True) if stream is not None and stream.isatty()]
    kind = os.environ.get("TERM", "")
    if not seen:
        return "ok", "none: replies are plain text, and the chat reads plain lines", ""
    size = shutil.get_terminal_size()
    found = f"TERM={kind or '(unset)'}, {size.columns} × {size.lines}, {', '.join(seen)}"
    if os.environ.get("NO_COLOR"):
        found += ", NO_COLOR"
    encoding = (sys.stdout.encoding or "").lower().replace("-", "") if sys.stdout is not None else ""
    if encoding != "utf8":
        return (
            "warning",
            f"{found}, {encoding}",
            "emoji and non-Latin scripts need UTF-8: set LANG, for example to C.UTF-8",
        )
    if kind in ("dumb", ""):
        return "warning", found, "the chat reads plain lines here: set TERM to the type of your terminal"
    return "ok", found, ""
