"""The same prompt, seed and settings give the recorded token ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.recorded import FILE, FORMATS, cases, model_folder, replies


@pytest.mark.parametrize("preset", FORMATS)
def test_replies_are_those_that_were_recorded(preset: str, tmp_path: Path) -> None:
    records = json.loads(FILE.read_text(encoding="utf-8"))
    assert len(records) == 50
    assert len({tuple(record[preset]) for record in records}) > 30
    asked = [{name: record[name] for name in ("messages", "seed", "settings", "kv")} for record in records]
    assert asked == list(cases())
    found = replies(model_folder(tmp_path, preset), records)
    for record, ids in zip(records, found, strict=True):
        assert ids == record[preset], record["messages"]
