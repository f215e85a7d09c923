"""A stand-in of a model hub on loopback: the HTTP interface that huggingface_hub speaks, with faults on demand.

    python -m tests.store.hub_server OWNER/NAME FOLDER    # serves a folder, prints the address, ends with stdin

Large files are answered with a redirect to another path, as the real hub redirects to its storage.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 20_000
MOST_UNCUT_BYTES = 1 << 19
PIECE_BYTES = 1 << 18


@dataclass
class HubState:
    """What the hub serves and how it fails.

    Attributes:
        repositories: `owner/name` -> folder of its files.
        licence: as the repositories state it.
        cuts: how many more answers of large files are cut at a random byte.
        statuses: status codes that the next requests for large files are answered with.
        gated: repositories whose files ask for consent, except with the token.
        token: the only token that is accepted; "" accepts none.
        gone: whether files are no longer there.
        storage: address of another server that has the large files; "" for this one.
        authorised: paths that were asked for with a token.
        checksums: file name -> checksum that is stated instead of the right one.
        sent: bytes that were sent, by file name.
        ignoring_ranges: send large files from their start, whatever is asked for.
        chunked: send large files without their length.
        grown: bytes that large files have gained since the hub stated their sizes; negative: lost.
        cut_at_once: how many more answers of large files are cut before their first byte.
        on_chunk: called before each piece of a large file.
    """

    repositories: dict[str, Path]
    licence: str = "apache-2.0"
    cuts: int = 0
    statuses: list[int] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    token: str = ""
    gone: bool = False
    storage: str = ""
    authorised: list[str] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    ignoring_ranges: bool = False
    chunked: bool = False
    grown: int = 0
    cut_at_once: int = 0
    on_chunk: Callable[[], object] = lambda: None
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_large(self, file: Path) -> bool:
        """Return whether the hub keeps a file outside of git."""
        return file.suffix in (".safetensors", ".bin", ".gguf") or file.stat().st_size > LARGE_BYTES

    def checksum(self, file: Path) -> str:
        """Return the stated SHA-256 of a file."""
        if file.name in self.checksums:
            return self.checksums[file.name]
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state, path = self.server.state, unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        given = self.headers.get("Authorization", "")
        if given:
            state.authorised.append(path)
            if given != f"Bearer {state.token}":
                self._error(401, "", "Invalid credentials in Authorization header")
                return
        if parts[:2] == ["api", "models"]:
            self._answer_info(state, "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif parts[0] == "storage":
            self._answer_storage(state, "/".join(parts[1:3]), "/".join(parts[3:]))
        else:
            self._answer_resolve(state, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _answer_info(self, state: HubState, name: str, revision: str) -> None:
        folder = state.repositories.get(name)
        if folder is None:
            self._error(401 if name.startswith("private/") else 404, "RepoNotFound", "Repository not found")
            return
        if revision not in ("main", COMMIT):
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings: list[dict[str, Any]] = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name_there = file.relative_to(folder).as_posix()
            entry: dict[str, Any] = {"rfilename": name_there, "size": file.stat().st_size, "blobId": "0" * 40}
            if state.is_large(file):
                entry["lfs"] = {"sha256": state.checksum(file), "size": file.stat().st_size, "pointerSize": 134}
            siblings.append(entry)
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        self._send(200, json.dumps({**info, "cardData": {"license": state.licence}}).encode(), "application/json")

    def _answer_resolve(self, state: HubState, name: str, revision: str, file_name: str) -> None:
        folder = state.repositories.get(name)
        if folder is None or state.gone or revision not in ("main", COMMIT) or not (folder / file_name).is_file():
            self._error(404, "EntryNotFound", "Entry not found")
        elif name in state.gated and not state.token:
            self._error(403, "GatedRepo", "Access to this model is restricted")
        elif name in state.gated and "Authorization" not in self.headers:
            self._error(401, "GatedRepo", "Access to this model is restricted")
        elif state.is_large(folder / file_name):
            self.send_response(302)
            self.send_header("Location", f"{state.storage}/storage/{name}/{file_name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_file(state, folder / file_name, cut=False)

    def _answer_storage(self, state: HubState, name: str, file_name: str) -> None:
        with state.lock:
            status = state.statuses.pop(0) if state.statuses else 0
        if status:
            self._error(status, "", "try again")
        else:
            self._send_file(state, state.repositories[name] / file_name, cut=state.cuts > 0)

    def _send_chunked(self, state: HubState, file: Path) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with file.open("rb") as stream:
            left = file.stat().st_size + state.grown
            while piece := stream.read(min(PIECE_BYTES, left)):
                left -= len(piece)
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                state.sent[file.name] += len(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _send_file(self, state: HubState, file: Path, *, cut: bool) -> None:
        large = state.is_large(file)
        if large and state.chunked:
            self._send_chunked(state, file)
            return
        size = file.stat().st_size + (state.grown if large else 0)
        start, stop = 0, size
        wanted = None if large and state.ignoring_ranges else self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(size, int(last) + 1 if last else size)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{file.name}"')
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if large and state.cut_at_once:
            state.cut_at_once -= 1
            cut, stop = True, start
        elif cut:
            with state.lock:
                broken = start + state.rng.randrange(MOST_UNCUT_BYTES)
                cut = broken < stop
                state.cuts -= cut
                stop = min(stop, broken)
        with file.open("rb") as stream:
            while start < stop:
                state.on_chunk()
                try:
                    sent = os.sendfile(self.connection.fileno(), stream.fileno(), start, min(PIECE_BYTES, stop - start))
                except OSError:
                    return
                start += sent
                with state.lock:
                    state.sent[file.name] += sent
        if cut:
            self.close_connection = True
            self.connection.close()

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(status, message.encode(), "text/plain", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    state: HubState

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


@contextmanager
def serving(state: HubState) -> Iterator[str]:
    """Serve `state` on a free port of loopback; yields the address for HF_ENDPOINT."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.state = state
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serve one repository until standard input ends."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    state = HubState({name: folder})
    state.checksums = {file.name: state.checksum(file) for file in folder.iterdir()}
    with serving(state) as url:
        print(url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
