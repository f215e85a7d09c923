"""Texts to train on and to measure with: `python -m models.recipe.mirror.texts FOLDER`.

The command writes a file for each kind and part, such as `source-held-out.txt`, for `qwchat perplexity` and
`qwchat calibrate`. A file of a package is held out by the hash of its name, so all machines hold out the same ones.
Held out texts go first: what repeats one of them is dropped from the texts to train on.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .packages import KINDS, Document, Kind, digest, documents
from .plan import Plan

SHORTEST = 200  # characters of a document
PARTS = ("train", "held-out")
SHINGLE = 8  # words
SAMPLED = 8  # one in so many shingles is kept
REPEATED = 0.3  # share of known shingles from which on a document repeats another


def held_out(document: Document, plan: Plan) -> bool:
    """Return True if the file of a document is not trained on."""
    return digest(f"{document.package}/{document.file}") % plan.texts.held_out[document.kind] == 0


def shingles(text: str) -> set[int]:
    """Return a sample of the hashes of all runs of `SHINGLE` words."""
    words = re.findall(r"\w+", text.lower())
    runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    return {value for value in map(digest, runs) if value % SAMPLED == 0}


class Repetitions:
    """Documents seen so far, by their shingles."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def repeats(self, text: str) -> bool:
        """Return True if a text mostly repeats earlier ones; remember it otherwise."""
        found = shingles(text)
        if len(found & self.seen) > REPEATED * len(found):
            return True
        self.seen |= found
        return False


def collect(plan: Plan, folders: Sequence[Path]) -> dict[tuple[Kind, str], list[str]]:
    """Return the texts of each kind and part, in an order that depends on their places alone."""
    read = documents(plan.texts.packages, folders, plan.texts.most_of_package)
    everything = [document for document in read if len(document.text) > SHORTEST]
    everything.sort(key=lambda document: (not held_out(document, plan), place(document)))
    repetitions = Repetitions()
    found: dict[tuple[Kind, str], list[str]] = {(kind, part): [] for kind in KINDS for part in PARTS}
    for document in everything:
        if not repetitions.repeats(document.text):
            part = PARTS[held_out(document, plan)]
            found[document.kind, part].append(document.text[: plan.texts.longest].strip() + "\n")
    return found


def place(document: Document) -> int:
    """Return the hash of where a document comes from, the order of all texts."""
    return digest(f"{document.kind}/{document.package}/{document.file}")


def write(found: dict[tuple[Kind, str], list[str]], folder: Path, longest: int) -> None:
    """Write one file for each kind and part, at most `longest` characters each."""
    folder.mkdir(parents=True, exist_ok=True)
    for (kind, part), texts in found.items():
        path = folder / f"{kind}-{part}.txt"
        path.write_text(joined(texts, longest), encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


def joined(texts: Iterable[str], longest: int) -> str:
    """Return the first texts together, at most `longest` characters, cut at a line."""
    pieces: list[str] = []
    left = longest
    for text in texts:
        if len(text) > left:
            pieces.append(text[: text.rfind("\n", 0, left) + 1])
            break
        pieces.append(text)
        left -= len(text) + 1
    return "\n".join(pieces)


def packages_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where packages are installed."""
    here = [Path(entry) for entry in sys.path if entry.endswith("site-packages")]
    parser.add_argument(
        "--packages", type=Path, nargs="+", default=here, metavar="FOLDER", help="`site-packages` to read"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=400_000, help="characters of each file at most")
    packages_option(parser)
    options = parser.parse_args()
    write(collect(Plan.load(), options.packages), options.folder, options.size)


if __name__ == "__main__":
    main()
