"""Write a statistics file so that an unfinished one is never mistaken for a complete one.

The data is written to `.NAME.partial/statistics` beside the destination; journal.jsonl beside it identifies the file in
its first line and has a line for each finished input. After a crash, a resumed run checks every journalled input
against its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from quant.calibration.moments import Block
from quant.calibration.statistics_file import read_statistics_header
from quant.calibration.statistics_layout import (
    NO_DIGEST,
    StatisticsHeader,
    data_bytes,
    header_bytes,
    header_entries,
    input_ranges,
    pack_triangle,
)
from quant.destination import (
    allocated_bytes,
    append_record,
    check_free_space,
    lock_destination,
    lock_path,
    open_reserved,
    partial_folder,
    translate_os_errors,
    write_at,
)
from quant.errors import ArgumentError, StatisticsError
from quant.safe_files import read_bounded, sync_folder
from quant.wording import Argument, ArgumentMessage, SuggestedArgument

DATA_NAME = "statistics"
JOURNAL_NAME = "journal.jsonl"
_MAX_JOURNAL_BYTES = 16 << 20
_PIECE = 4 << 20


class StatisticsWriter:
    """Writer of one statistics file.

    In a `with` block: `open_folder`, `begin`, `write` for each input in order, then `publish`. The block holds the lock
    of the destination. Leaving it early keeps the partial folder for a later resume.

    Args:
        destination: file to write.

    Attributes:
        partial: folder for whatever is needed until the file is complete; `publish` deletes it.
        finished: SHA-256 (hex) of the inputs that are written, by name.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.partial = partial_folder(destination)
        self.finished: dict[str, str] = {}
        self._lock = self._data = self._journal = -1

    def __enter__(self) -> StatisticsWriter:
        self._lock = lock_destination(self.destination)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self._data, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        with suppress(OSError):  # Not empty, or not there.
            self.partial.rmdir()
        lock_path(self.destination).unlink(missing_ok=True)
        os.close(self._lock)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of everything that the file depends on."""
        text = json.dumps(header_entries(self._header, self._unknown()))
        return hashlib.sha256(text.encode()).hexdigest()

    def is_published(self) -> bool:
        """Return whether the destination already holds the result."""
        try:
            return read_statistics_header(self.destination)[0] == self._header
        except StatisticsError:
            return False

    def open_folder(self, resume: bool) -> list[str]:
        """Open or create the partial folder. Return notices for the user.

        Args:
            resume: keep what an earlier attempt left.
        """
        notices: list[str] = []
        with translate_os_errors(self.partial):
            if self.partial.exists() and not resume:
                shutil.rmtree(self.partial)
                suggestion = SuggestedArgument("resume", True)
                notices.append(
                    ArgumentMessage("an unfinished calibration was discarded; ", suggestion, " would have continued it")
                )
            elif resume and not self.partial.exists():
                notices.append("there is nothing to resume; starting from the beginning")
            self.partial.mkdir(exist_ok=True)
        return notices

    def begin(self, header: StatisticsHeader) -> list[str]:
        """Open or create the files. Inputs that an earlier attempt finished are kept as far as they are intact.

        Args:
            header: what the file is about.

        Returns:
            Notices for the user.

        Raises:
            ArgumentError: the partial folder belongs to another calibration, or cannot be written.
            DiskFullError: the disk does not have enough free space.
        """
        self._header = header
        self._ranges = input_ranges(header.columns)
        self._base = len(header_bytes(header, self._unknown()))
        self._size = self._base + data_bytes(header.columns)
        if self.is_published():
            shutil.rmtree(self.partial, ignore_errors=True)  # Left by a run that was killed after its last rename.
            return []
        notices = []
        if (self.partial / JOURNAL_NAME).exists():
            self._read_journal()
            notices.append(f"resuming: {len(self.finished)} of {len(self._ranges)} inputs are done")
        written = allocated_bytes(self.partial / DATA_NAME)
        check_free_space(self.destination.parent, self._size, written, "the statistics file")
        with translate_os_errors(self.partial):
            self._data = open_reserved(self.partial / DATA_NAME, self._size)
            self._journal = os.open(self.partial / JOURNAL_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            append_record(self._journal, {"identity": self.identity})
            for name, digest in self.finished.items():
                append_record(self._journal, {"name": name, "sha256": digest})
        return notices

    def write(self, name: str, blocks: Sequence[Block]) -> None:
        """Write the blocks of input `name`, (b, b) f32 each, and add it to the journal."""
        place, hasher = self._ranges[name], hashlib.sha256()
        assert tuple(map(len, blocks)) == place.sizes
        offset = self._base + place.offset
        with translate_os_errors(self.destination):
            for block in blocks:
                data = pack_triangle(block).view(np.uint8).data
                hasher.update(data)
                write_at(self._data, data, offset)
                offset += len(data)
            append_record(self._journal, {"name": name, "sha256": hasher.hexdigest()})
        self.finished[name] = hasher.hexdigest()

    def publish(self, force: bool) -> None:
        """Write the header, sync the file and rename it to its final name.

        Args:
            force: replace an existing file.

        Raises:
            ArgumentError: the destination exists, and `force` is False.
        """
        with translate_os_errors(self.destination):
            write_at(self._data, memoryview(header_bytes(self._header, self.finished)), 0)
            os.fsync(self._data)
            self.check_destination(force)
            (self.partial / DATA_NAME).replace(self.destination)
            sync_folder(self.destination.parent)
        shutil.rmtree(self.partial, ignore_errors=True)

    def check_destination(self, force: bool) -> None:
        """Raise ArgumentError if the destination exists and must not be replaced.

        Args:
            force: allow a statistics file that exists.
        """
        if not self.destination.exists():
            return
        try:
            read_statistics_header(self.destination)
        except StatisticsError:
            raise ArgumentError(f"{self.destination} exists and is not a statistics file; choose another") from None
        if not force:
            suggestion = SuggestedArgument("force", True)
            raise ArgumentError(
                ArgumentMessage(f"{self.destination} already exists; use ", suggestion, " to replace it")
            )

    def _unknown(self) -> Mapping[str, str]:
        return dict.fromkeys(self._header.columns, NO_DIGEST)

    def _read_journal(self) -> None:
        """Add the journalled inputs whose data matches their checksums to `finished`."""
        identity, records = self._parse_journal()
        if identity is not None and identity != self.identity:
            raise ArgumentError(
                ArgumentMessage(
                    f"the unfinished calibration in {self.partial} has another model or other text; run without ",
                    Argument("resume"),
                    " to start from the beginning",
                )
            )
        path = self.partial / DATA_NAME
        if not path.is_file() or path.stat().st_size != self._size:
            return
        with path.open("rb") as file:
            for name, digest in records.items():
                place = self._ranges.get(name)
                if place is not None and _digest(file, self._base + place.offset, place.nbytes) == digest:
                    self.finished[name] = digest

    def _parse_journal(self) -> tuple[str | None, dict[str, str]]:
        """Return identity and digests of the journal, or (None, {}) without a complete first line."""
        try:
            journal = read_bounded(self.partial / JOURNAL_NAME, StatisticsError, _MAX_JOURNAL_BYTES)
            lines = journal.split(b"\n")[:-1]  # an incomplete last line has no newline
            first, *rest = [json.loads(line) for line in lines]
            return first["identity"], {record["name"]: record["sha256"] for record in rest}
        except (StatisticsError, ValueError, LookupError, TypeError, RecursionError):
            return None, {}


def _digest(file: Any, start: int, nbytes: int) -> str:
    hasher = hashlib.sha256()
    file.seek(start)
    while nbytes:
        piece = file.read(min(nbytes, _PIECE))
        hasher.update(piece)
        nbytes -= len(piece)
    return hasher.hexdigest()
