"""Ask llama-cpp-python's server through `--endpoint`, and compare with the same GGUF file on this machine.

    python -m benchmarks.llama_server FILE.gguf --rival-python /path/to/python

`--rival-python` is a Python with llama-cpp-python and the packages of its server (`llama-cpp-python[server]`). Each
question is answered greedily by the server and by our engine. Prints which replies are the same; the exit code is 1 if
one differs or fails.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.real_shapes import qwchat

QUESTIONS = ("What is 17 + 28?", "Who are you?", "Spell the word planet.", "Which day comes after Tuesday?")
_START_SECONDS = 120.0
_SETTINGS = ("--temp", "0", "--max-tokens", "48", "-q")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def server(python: Path, file: Path) -> Iterator[str]:
    """Serve a GGUF file and yield the URL. Raises SystemExit if the server does not start."""
    port = free_port()
    command = [str(python), "-m", "llama_cpp.server", "--model", str(file), "--port", str(port), "--n_ctx", "2048"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            end = time.monotonic() + _START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > end:
                    output.seek(0)
                    raise SystemExit(f"the server did not start:\n{output.read()[-2000:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def reply(words: Sequence[str]) -> str:
    """Return what `qwchat` prints, or its error."""
    ran = subprocess.run(qwchat(*words, *_SETTINGS), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return ran.stdout if ran.returncode == 0 else f"exit code {ran.returncode}: {ran.stderr}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="llama-cpp-python's server through --endpoint")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rival-python", type=Path, default=Path(sys.executable))
    options = parser.parse_args()
    same = 0
    with server(options.rival_python, options.file) as url:
        for question in QUESTIONS:
            here, there = reply(("-p", question, "-m", str(options.file))), reply(("-p", question, "--endpoint", url))
            same += here == there
            print(f"{question} {'same' if here == there else f'here {here!r}, there {there!r}'}")
    print(f"{same} of {len(QUESTIONS)} replies are the same")
    return int(same < len(QUESTIONS))


if __name__ == "__main__":
    sys.exit(main())
