"""Documents of the installed packages that a plan names: documentation, Python source and licences.

A package counts only if its metadata names permissive licences alone. The versions are those installed, so two machines
read texts that differ a little.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import Distribution, distributions
from pathlib import Path

PERMISSIVE = ("mit", "bsd", "apache", "isc", "psf", "python software foundation", "zlib", "0bsd", "cc0", "hpnd")
OTHER = ("gpl", "gnu ", "mpl", "mozilla", "proprietary", "commercial")
STANDARD_LIBRARY = "python"
PROSE_FILES = (".md", ".rst", ".txt")
LONGEST_FILE = 400_000  # bytes; longer ones are tables
SHORTEST = 200  # characters of a string that counts as documentation
SKIPPED = {"test", "tests", "testing", "idle_test", "site-packages", "_vendor", "vendor", "_vendored", "__pycache__"}
NOT_PROSE = re.compile(r"[^A-Za-z ]+")
Kind = str
KINDS: tuple[Kind, ...] = ("documentation", "source", "licences")


@dataclass(frozen=True)
class Document:
    """One text with the place that it comes from: the package and the file inside it."""

    kind: Kind
    package: str
    file: str
    text: str


def permissive(distribution: Distribution) -> bool:
    """Return True if the metadata names permissive licences and no other."""
    metadata = distribution.metadata
    named = [metadata.get("License-Expression") or "", (metadata.get("License") or "").split("\n\n")[0][:400]]
    named += [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    line = " ".join(named).lower()
    return any(word in line for word in PERMISSIVE) and not any(word in line for word in OTHER)


def newest(folders: Sequence[Path]) -> dict[str, Distribution]:
    """Return the permissive distributions below some `site-packages`, the newest of each name."""
    found: dict[str, Distribution] = {}
    for distribution in distributions(path=[str(folder) for folder in folders]):
        name = (distribution.metadata.get("Name") or "").lower().replace("_", "-")
        if name and permissive(distribution):
            known = found.get(name)
            if known is None or numbers(known.version) < numbers(distribution.version):
                found[name] = distribution
    return found


def numbers(version: str) -> list[int]:
    """Return the numbers of a version, to sort by."""
    return [int(part) for part in version.replace("+", ".").split(".") if part.isdecimal()]


def files(distribution: Distribution) -> Iterator[tuple[str, Path]]:
    """Yield name and path of the text files of a distribution, in order."""
    for entry in sorted(distribution.files or [], key=str):
        name = str(entry)
        if not SKIPPED.isdisjoint(Path(name).parts) or name.startswith(".."):
            continue
        yield name, Path(str(distribution.locate_file(entry)))


def library_files() -> Iterator[tuple[str, Path]]:
    """Yield name and path of the files of Python's standard library, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if SKIPPED.isdisjoint(name.parts):
            yield str(name), path


def documents(names: Sequence[str], folders: Sequence[Path], most: int) -> Iterator[Document]:
    """Yield documents of the named packages that are installed, in the order of the names.

    Args:
        names: names of packages.
        folders: `site-packages` folders to look in.
        most: characters of a package, apart from its licences, after which its other files are skipped. The hash of
            its name determines when a file's turn is.
    """
    found = newest(folders)
    for name in names:
        if name == STANDARD_LIBRARY:
            entries = list(library_files())
        elif name in found:
            entries = list(files(found[name]))
            body = found[name].metadata.get_payload()  # type: ignore[attr-defined]
            if isinstance(body, str) and body:
                yield Document("documentation", name, "README", body)
        else:
            print(f"{name}: not installed with a permissive licence, skipped", file=sys.stderr)
            continue
        left = most
        for file, path in sorted(entries, key=lambda entry: (not is_licence(entry[1]), digest(entry[0]))):
            if left <= 0:
                break
            for document in read(name, file, path):
                left -= 0 if document.kind == "licences" else len(document.text)
                yield document


def digest(text: str) -> int:
    """Return 64 bits of a hash that is the same on all machines."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def is_licence(path: Path) -> bool:
    """Return True if the name of a file is that of a licence or a notice."""
    starts = ("license", "licence", "copying", "notice", "thirdparty", "third_party")
    return path.suffix != ".py" and path.name.lower().startswith(starts)


def read(package: str, file: str, path: Path) -> Iterator[Document]:
    """Yield the documents of one file, none if it holds no text of a known kind."""
    licence = is_licence(path)
    if not licence and path.suffix not in (".py", *PROSE_FILES):
        return
    try:
        if path.stat().st_size > LONGEST_FILE:
            return
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if licence:
        yield Document("licences", package, file, text)
    elif path.suffix == ".py":
        prose, source = separated(text)
        yield Document("documentation", package, file, prose)
        yield Document("source", package, file, source)
    elif "dist-info" not in file and prose_share(text) > 0.7:
        yield Document("documentation", package, file, text)


def prose_share(text: str) -> float:
    """Return the share of letters and spaces."""
    return len(NOT_PROSE.sub("", text)) / max(1, len(text))


def separated(text: str) -> tuple[str, str]:
    """Return the documentation strings of a module, and its source without them."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return "", ""
    lines = text.splitlines()
    strings: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or len(node.value) < SHORTEST:
            continue
        if node.end_lineno is None or "\n" not in node.value.strip() or prose_share(node.value) < 0.7:
            continue
        strings.append(strip_margin(node.value))
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n\n".join(strings), "\n".join(line for i, line in enumerate(lines) if line or (i and lines[i - 1]))


def strip_margin(text: str) -> str:
    """Return a documentation string without the margin of its source."""
    lines = text.expandtabs().strip().splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    return "\n".join([lines[0].strip(), *(line[margin:].rstrip() for line in lines[1:])])
