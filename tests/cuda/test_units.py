"""Kernels and units, and which files a unit is made of; without a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwchat.cuda.kernels import sources
from qwchat.cuda.kernels.unit import Kernel


def scale(target: object, count: object, factor: object) -> None: ...


def test_a_kernel_knows_its_name_and_parameters() -> None:
    kernel = Kernel(scale, "lif", 128, 2)
    assert kernel.name == "scale"
    assert kernel.parameters == [["target", "l"], ["count", "i"], ["factor", "f"]]


@pytest.mark.parametrize("signature", ["li", "liff", "lix", ""])
def test_a_signature_that_does_not_fit_is_refused(signature: str) -> None:
    with pytest.raises(ValueError, match=r"kernel scale: signature .* does not fit target, count, factor"):
        Kernel(scale, signature, 128, 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "first.py").write_text(
        "from qwchat.cuda.kernels.second import x\nfrom qwchat.cuda.kernels.unit import Unit\n"
    )
    (tmp_path / "second.py").write_text("import numpy\nfrom qwchat.cuda.kernels import instructions, third\n")
    (tmp_path / "third.py").write_text("from qwchat.cuda.kernels import second\n")
    (tmp_path / "fourth.py").write_text("x = 1\n")
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    return tmp_path


def test_a_unit_is_made_of_what_its_file_imports(folder: Path) -> None:
    assert [file.name for file in sources.files_of("first")] == ["first.py", "second.py", "third.py"]
    assert [file.name for file in sources.files_of("fourth")] == ["fourth.py"]


def test_a_digest_changes_with_each_file_that_is_imported(folder: Path) -> None:
    before = sources.digest("first"), sources.digest("fourth")
    (folder / "third.py").write_text("from qwchat.cuda.kernels import second\ny = 2\n")
    assert sources.digest("first") != before[0]
    assert sources.digest("fourth") == before[1]
