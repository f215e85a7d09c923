"""Files attached to a message: reading them, and their form in the message.

    File src/app.py, lines 10-80:

    ```py
    ...
    ```

The fence is longer than any run of backticks in the file. Files precede the text of the message. Only files that the
user names are read, never files that a model names.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.units import binary_size
from qwchat.chat.file_names import FileMatches, FileReference, LineRange, find_files, is_pattern, safe_name
from qwchat.chat.formatting import token_count
from qwchat.errors import UsageError

MAX_FILE_BYTES = 8 << 20  # Limit for one file or line range; several times the longest context.
_MAX_NOTICES = 5  # Skipped files that are named; the rest are counted.
_MAX_FILES_LISTED = 12  # Attached files that get a line of their own; the rest share one.

_LANGUAGE = re.compile(r"\.([A-Za-z0-9+#]{1,12})")
# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)


@dataclass(frozen=True)
class Attachment:
    """The text of a file or of a range of its lines.

    Attributes:
        name: file name as shown in the message.
        text: its lines, separated by newlines, without one at the end.
        lines: the range of lines; None means the whole file.
    """

    name: str
    text: str
    lines: LineRange | None = None

    @property
    def title(self) -> str:
        """The name with the line range, as a user would type it: `app.py:10-80`."""
        return self.name if self.lines is None else f"{self.name}:{self.lines}"

    def block(self) -> str:
        """Return the file in the form that it has in a message."""
        where = f"File {self.name}"
        if self.lines is not None:
            where += f", line{'' if self.lines.first == self.lines.last else 's'} {self.lines}"
        if not self.text:
            return f"{where}: empty"
        info = _LANGUAGE.fullmatch(Path(self.name).suffix)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", self.text)), default=0))
        return f"{where}:\n\n{fence}{info[1].lower() if info else ''}\n{self.text}\n{fence}"


@dataclass(frozen=True)
class LoadedFiles:
    """Files that were read, with a notice for each file of a pattern that was skipped."""

    attachments: tuple[Attachment, ...] = ()
    notices: tuple[str, ...] = ()


def load_files(name: str, *, pipes: bool = False) -> LoadedFiles:
    """Read the files that `name` refers to.

    Args:
        name: a path or a pattern, with an optional line range.
        pipes: also read pipes and character devices, such as a shell's `<(...)`.

    Raises:
        UsageError: no file matches, or a file that was named explicitly cannot be attached.
    """
    matches = find_files(name)
    if matches is None:
        shown = safe_name(name)
        raise UsageError(
            f"no file matches {shown}" if is_pattern(name) else f"cannot read {shown}: No such file or directory"
        )
    return load_matches(matches, pipes=pipes)


def load_matches(matches: FileMatches, *, pipes: bool = False) -> LoadedFiles:
    """Read files that were found. Files of a pattern that are binary, too big or unreadable are skipped.

    Raises:
        UsageError: no file is left, or a file that was named explicitly cannot be attached.
    """
    if not matches.by_pattern:
        return LoadedFiles(tuple(load_file(reference, pipes=pipes) for reference in matches.files))
    attachments, errors = [], []
    for reference in matches.files:
        try:
            attachments.append(load_file(reference))
        except UsageError as error:
            errors.append(str(error))
    if not attachments:
        raise UsageError(errors[0])
    notices = [f"skipped: {reason}" for reason in errors[:_MAX_NOTICES]]
    if more := len(errors) - len(notices):
        notices.append(f"skipped: {more:,} more files")
    return LoadedFiles(tuple(attachments), tuple(notices))


def load_file(reference: FileReference, *, pipes: bool = False) -> Attachment:
    """Return the text of one file.

    Raises:
        UsageError: it is a folder or a special file, too big, not text, or has too few lines.
    """
    try:
        with _open(reference, pipes=pipes) as file:
            data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                return _load_lines(reference, file)
    except OSError as error:
        raise UsageError(f"cannot read {reference.name}: {error.strerror or error}") from error
    text = _normalise_newlines(decode_text(data, reference.name))
    if reference.lines is None:
        return Attachment(reference.name, text)
    lines = text.split("\n")
    return _select_lines(reference, lines[reference.lines.first - 1 : reference.lines.last], len(lines))


def _open(reference: FileReference, *, pipes: bool) -> io.BufferedReader:
    """Open a file without blocking (unless `pipes` is set), then check its type on the open descriptor.

    Raises OSError, and UsageError if it is not a regular file.
    """
    # Opened without blocking, a pipe whose writer has not connected yet would look empty.
    wait_for_writer = pipes and stat.S_ISFIFO(reference.path.stat().st_mode)
    descriptor = os.open(reference.path, os.O_RDONLY | os.O_CLOEXEC | (0 if wait_for_writer else os.O_NONBLOCK))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not (pipes and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise UsageError(
                f"{reference.name} is a folder: name its files, for example {reference.name.rstrip('/')}/*.md"
            )
        raise UsageError(f"{reference.name} is not a regular file")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def decode_text(data: bytes, where: str) -> str:
    """Decode `data` without its byte order mark: UTF-8, or UTF-16 and UTF-32 if they begin with a mark.

    Raises:
        UsageError: other encodings, and NUL bytes, which mark nearly every file that is not text.
    """
    mark, encoding = next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), (b"", "UTF-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if mark or b"\0" not in data:
            place = len(mark) + error.start
            raise UsageError(
                f"{where} is not {encoding.removesuffix('LE').removesuffix('BE')} text "
                f"(byte {place + 1:,} is 0x{data[place]:02x}): convert it, for example with iconv"
            ) from error
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{where} is a binary file (contains NUL bytes)")
    return text


def compose_message(attachments: Sequence[Attachment], text: str) -> str:
    """Return the message to send: the files, then `text`, separated by blank lines."""
    parts = [*(attachment.block() for attachment in attachments), text]
    return "\n\n".join(part for part in parts if part.strip())


def file_lines(counted: Sequence[tuple[Attachment, int]]) -> list[str]:
    """Return one line per file with its token count, and one for all files beyond a dozen.

    For a single file the list is empty: the total says it all.
    """
    if len(counted) == 1:
        return []
    lines = [f"{attachment.title}: {token_count(tokens)}" for attachment, tokens in counted[:_MAX_FILES_LISTED]]
    if rest := counted[_MAX_FILES_LISTED:]:
        lines.append(f"… and {len(rest):,} more: {token_count(sum(tokens for _, tokens in rest))}")
    return lines


def files_total(counted: Sequence[tuple[Attachment, int]]) -> str:
    """Return the total as text: `3 files, 2,140 tokens`. A single file is named."""
    files = counted[0][0].title if len(counted) == 1 else f"{len(counted):,} files"
    return f"{files}, {token_count(sum(tokens for _, tokens in counted))}"


def _normalise_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def _load_lines(reference: FileReference, file: io.BufferedReader) -> Attachment:
    """Read a range of lines from a file that is too big to read whole, up to the last line asked for."""
    size = binary_size(MAX_FILE_BYTES)
    if reference.lines is None or not file.seekable():
        raise UsageError(f"{reference.name} is larger than {size}: select lines, for example {reference.name}:1-100")
    file.seek(0)
    wanted, kept, number = reference.lines, bytearray(), 0
    while wanted.last is None or number < wanted.last:
        line = file.readline(MAX_FILE_BYTES)
        if not line:
            break
        number += 1
        if number >= wanted.first:
            kept += line
        if len(kept) > MAX_FILE_BYTES:
            raise UsageError(f"{reference.name}:{wanted} is larger than {size}: select fewer lines")
    text = _normalise_newlines(decode_text(bytes(kept), reference.name))
    return _select_lines(reference, text.split("\n") if number >= wanted.first else [], number)


def _select_lines(reference: FileReference, lines: Sequence[str], available: int) -> Attachment:
    """Return `lines` as an attachment. `available` is the number of lines in the file."""
    assert reference.lines is not None
    first = reference.lines.first
    if first > available:
        count = "1 line" if available == 1 else f"{available:,} lines"
        raise UsageError(f"{reference.name} has only {count}: line {first:,} does not exist")
    last = available if reference.lines.last is None else min(reference.lines.last, available)
    return Attachment(reference.name, "\n".join(lines), LineRange(first, last))
