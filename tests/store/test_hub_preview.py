"""The beginning of a repository, read before its weights are downloaded."""

from __future__ import annotations

import pytest

from quant.errors import CheckpointError
from qwchat.errors import QwchatError
from qwchat.store import hub_preview
from qwchat.store.hub import Repository
from qwchat.store.hub_files import HubFile


@pytest.mark.parametrize("size", [1 << 50, (1 << 63) - 1, 1 << 63, 1 << 200])
def test_impossible_sizes_are_one_line(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_preview, "download", lambda *arguments: None)
    file = HubFile("x.gguf", size, "0" * 64)
    repository = Repository("Qwen/Tiny", "0" * 40, None, {"x.gguf": file})
    with pytest.raises((QwchatError, CheckpointError)) as caught:
        hub_preview.preview(repository, None)
    assert "\n" not in str(caught.value)
