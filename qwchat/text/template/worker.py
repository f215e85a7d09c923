"""Worker process that renders templates of unknown origin. `qwchat.text.template.isolated` starts and kills it.

Requests and replies are frames on standard input and output: the length of the body in 8 bytes, big-endian, then JSON.
The worker answers one request after the other and exits at the end of its input. If a request exceeds its processor
time, the operating system kills the worker, since C code does not see exceptions. The worker cannot open files.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from qwchat.errors import TemplateError
from qwchat.text.template.sandbox import SandboxedTemplate

HEADER = struct.Struct(">Q")
MEMORY_BASE, MEMORY_PER_CHARACTER = 512 << 20, 128  # bytes in addition to the memory at the start
# These load the modules that jinja2 imports on demand, for example when it first reports an error.
_WARM_UP = ("{{ messages | tojson }}{{ strftime_now('%Y') }}", "{{ missing.name }}", "{% if %}")


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills this process
    for source in _WARM_UP:
        _answer({"source": source, "where": "", "variables": {"messages": []}, "length": 0})
    used = _address_space()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 0)
    received, sent = sys.stdin.buffer, sys.stdout.buffer
    while (body := read_frame(received)) is not None:
        request = json.loads(body.decode("utf-8", "surrogatepass"))
        del body
        with suppress(ValueError, OSError):
            limit = used + MEMORY_BASE + MEMORY_PER_CHARACTER * request["length"]
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        # By default, both signals end the process.
        signal.setitimer(signal.ITIMER_PROF, request["cpu"])
        signal.setitimer(signal.ITIMER_REAL, request["wall"])
        reply = json.dumps(_answer(request), ensure_ascii=False).encode("utf-8", "surrogatepass")
        write_frame(sent, reply)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def read_frame(stream: BinaryIO) -> bytes | None:
    """Return the body of the next frame, or None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    body = stream.read(size)
    return body if len(body) == size else None


def write_frame(stream: BinaryIO, body: bytes) -> None:
    """Write one frame.

    Raises:
        OSError: the reader has closed the stream.
    """
    stream.write(HEADER.pack(len(body)))
    stream.write(body)
    stream.flush()


_last: tuple[str, str, SandboxedTemplate] | None = None


def _answer(request: dict[str, Any]) -> dict[str, str]:
    """Compile the template, and render it if the request has variables."""
    global _last
    source, where = request["source"], request["where"]
    try:
        if _last is None or _last[:2] != (source, where):
            _last = source, where, SandboxedTemplate(source, where)
        if request["variables"] is None:
            return {"text": ""}
        return {"text": _last[2].render(request["variables"], request["length"])}
    except TemplateError as error:
        return {"error": str(error)}


def _address_space() -> int:
    """Return the bytes of address space in use, or 1 GiB if the system does not report them."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 1 << 30  # more than an interpreter takes


def _limit(kind: int, value: int) -> None:
    with suppress(ValueError, OSError):  # macOS does not support all limits
        resource.setrlimit(kind, (value, value))
