"""The language of the product, its help and its docs: constructions, names, and one meaning for each name."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wording import files, findings

TREE = Path(__file__).parent.parent
PRODUCT = [TREE / "qwchat", TREE / "quant"]
PROSE = [TREE / name for name in ("qwchat", "quant", "benchmarks", "models/recipe", "tests", "docs", "README.md")]
# Entries of the log stay as they were written; the list of constructions names them.
UNCHECKED = {TREE / "docs/log.md", TREE / "tests/wording.py", TREE / "tests/test_plain_english.py"}

# Names that had to be learnt, each with the term that replaced it.
REPLACED = {
    "Wardrobe": "ActivePersona",
    "put_on": "apply",
    "take_off": "remove",
    "worn": "active",
    "Desk": "CommandContext",
    "Seat": "InputSource",
    "Talker": "ChatModel",
    "Talk": "Transcript",
    "Machine": "a name that says which figures it holds",
    "Chosen": "ActiveConstraint",
    "Reader": "a name that says what is read",
    "Room": "ContextBudget",
    "NoRoomError": "ContextFullError",
    "Knob": "SettingSpec",
    "Kind": "ValueType",
    "Controls": "ReplySettings",
    "SamplingSettings": "SamplingParams",
    "norms_alone": "norm_per_thread",
    "own_normed": "a name that says which rows",
    "SLOTS": "TOKEN_LANES",
    "rouse": "wake",
    "nap": "back_off",
    "LoopGuard": "RepetitionGuard",
    "Flow": "StreamParser",
    "Live": "Tail",
    "Blocks": "BlockParser",
}
REPLACED_FILES = {
    "wardrobe", "look", "talk", "room", "knobs", "kinds", "shape", "shapes", "codebook", "signed_bytes", "plan",
    "phases", "program", "sharing", "loops", "vocabulary", "opening", "following", "resuming", "prepare", "services",
    "report", "flow", "live", "blocks", "recorded", "saved", "snapshot",
}  # fmt: skip
# One base name for the same thing at two places: a format and its quantiser, a protocol and what fulfils it, a loop's
# NumPy twin, a package's exceptions, what is compiled together; and the files of a device, which are named alike.
MIRRORED_FILES = {"__init__", "decoder", "dense", "errors", "linear", "q4", "q6", "q8", "reference", "unit"} | {
    *("build", "kv_cache", "memory", "row_kernels", "stages", "weights", "workspace")
}


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Yield each Python file of the product with its syntax tree."""
    for file in files(PRODUCT):
        if file.suffix == ".py":
            yield file, ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("root", PROSE, ids=lambda path: str(path.relative_to(TREE)))
def test_prose_has_no_construction_of_the_list(root: Path) -> None:
    found = [finding for file in files([root]) if file not in UNCHECKED for finding in findings(file)]
    assert found == []


def test_the_list_finds_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text('def f():\n    """Whether x is no text."""\n    # There is none: nobody goes on with it.\n')
    assert len(list(findings(file))) == 5


def test_replaced_names_stay_replaced() -> None:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{file.relative_to(TREE)}: {node.name}: use {REPLACED[node.name]}"
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.name in REPLACED
    ]
    assert found == []
    assert [str(file) for file, _ in modules() if file.stem in REPLACED_FILES] == []


def test_a_name_means_one_thing() -> None:
    classes, stems = defaultdict(list), defaultdict(list)
    for file, tree in modules():
        stems[file.stem].append(str(file.relative_to(TREE)))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(str(file.relative_to(TREE)))
    assert {name: where for name, where in classes.items() if len(where) > 1} == {}
    assert {stem: where for stem, where in stems.items() if len(where) > 1 and stem not in MIRRORED_FILES} == {}
