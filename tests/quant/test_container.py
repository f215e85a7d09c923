"""Model folders: reading returns what was written, and no manifest makes the reader access other bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant import container, convert, formats
from quant.container import MANIFEST_NAME, WEIGHTS_NAME, is_model_folder, open_model
from quant.errors import ContainerError
from quant.quality import Quality
from quant.sources import open_source
from quant.verification import PADDING, verify
from tests.quant.checkpoints import make_checkpoint, write_json
from tests.tiers import count

ROW = "model.layers.0.mlp.up_proj.weight"
QUALITY = {"kl_mean": 0.01, "kl_p999": 0.2, "same_top": 0.97, "tokens": 100, "text": "some text"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint in source/ and its q4 conversion in model/."""
    folder = tmp_path_factory.mktemp("made")
    make_checkpoint(folder / "source")
    for _ in convert(folder / "source", folder / "model"):
        pass
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the converted model to damage."""
    return Path(shutil.copytree(made / "model", tmp_path / "model"))


def test_what_was_written_comes_back(made: Path) -> None:
    folder = open_model(made / "model")
    source = open_source(made / "source")
    assert folder.preset == "q4"
    assert folder.source_fingerprint == source.fingerprint
    assert folder.total_bytes == (made / "model" / WEIGHTS_NAME).stat().st_size
    assert len(folder.fingerprint) == 16
    for name in folder.names:
        packed = folder.tensor(name)
        formats.check_packed(packed)
        expected = source.read(name)
        error = np.sqrt(((formats.dequantise(packed) - expected) ** 2).sum() / (expected**2).sum())
        assert error == pytest.approx(folder.manifest["tensors"][name]["relative_error"], rel=1e-3, abs=1e-7)
        for part in packed.parts.values():
            assert part.ctypes.data % 64 == 0
            assert not part.flags.writeable
    with pytest.raises(ContainerError, match="has no tensor nonsense"):
        folder.tensor("nonsense")


def test_copies_are_exact(made: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (made / "model" / name).read_bytes() == (made / "source" / name).read_bytes()
    assert sorted(path.name for path in (made / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        MANIFEST_NAME,
        "tokenizer.json",
        "tokenizer_config.json",
        WEIGHTS_NAME,
    ]


def test_opening_loads_no_compiler(made: Path) -> None:
    program = f"import sys; from quant.container import open_model; open_model({str(made / 'model')!r}); "
    program += "sys.exit('numba' in sys.modules or 'quant.sources' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_quality_is_read_and_may_be_missing(model: Path) -> None:
    assert open_model(model).quality is None
    manifest = json.loads((model / MANIFEST_NAME).read_text())
    write_json(model / MANIFEST_NAME, manifest | {"quality": QUALITY})
    assert open_model(model).quality == Quality(0.01, 0.2, 0.97, 100, "some text")


def part_of(manifest: dict[str, Any], part: str = "codes") -> dict[str, Any]:
    chosen: dict[str, Any] = manifest["tensors"][ROW]["parts"][part]
    return chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="zip"), "is not the manifest"),
        (
            lambda m: m.update(format_version=3),
            r"has format version 3, but this program reads 1 to 2; update the program",
        ),
        (lambda m: m.update(format_version=0), "format version 0"),
        (lambda m: m.update(format_version=True), "format version True"),
        (lambda m: m.update(format_version=None), "format version None"),
        (lambda m: m.pop("tensors"), r"the key 'tensors' \(object\) is missing"),
        (lambda m: m.pop("weights"), "the key 'weights'"),
        (lambda m: m.pop("settings"), "the key 'settings'"),
        (lambda m: m.pop("source"), "the key 'source'"),
        (lambda m: m.update(quality=[]), r"quality is \[\], expected an object"),
        (lambda m: m.update(quality=QUALITY | {"kl_mean": -1}), "quality: kl_mean is -1, expected a number from 0"),
        (lambda m: m.update(quality=QUALITY | {"kl_p999": float("nan")}), "quality: kl_p999 is nan"),
        (
            lambda m: m.update(quality=QUALITY | {"same_top": 1.5}),
            "same_top is 1.5, expected a number from 0 to 1",
        ),
        (lambda m: m.update(quality=QUALITY | {"tokens": True}), "quality: tokens is True, expected an integer"),
        (lambda m: m.update(quality=QUALITY | {"text": "x" * 1001}), "quality: text is 'xxx.*, expected a string"),
        (lambda m: m.update(quality={"kl_mean": 0}), "quality: the key 'kl_p999'"),
        (lambda m: m["files"].update({"../../etc/passwd": {"sha256": ""}}), "is not a file of a model folder"),
        (lambda m: m["files"].update({"tokenizer.json": 1}), "tokenizer.json is 1, expected an object"),
        (lambda m: m["weights"].update(bytes=-1), "weights: bytes is -1, expected an integer from 0 to "),
        (lambda m: m["weights"].update(bytes=1 << 80), r"weights: bytes is \d+, expected"),
        (lambda m: m["weights"].update(bytes=m["weights"]["bytes"] + 64), "convert the model again"),
        (lambda m: m["tensors"].pop(ROW), "missing, but required by config.json"),
        (lambda m: m["tensors"].update(evil={}), "tensor evil is not part of a model with this config.json"),
        (lambda m: m["tensors"].update({ROW: []}), r"weight is \[\], expected an object"),
        (lambda m: m["tensors"][ROW].update(format="q9"), "unknown tensor format 'q9'"),
        (lambda m: m["tensors"][ROW].update(format="q8"), r"part codes: dtype and shape are not uint8\[6, 16, 16, 4\]"),
        (lambda m: m["tensors"][ROW].update(format="vector"), "stores vectors"),
        (lambda m: m["tensors"][ROW].update(format=["q4"]), r"format is \['q4'\], expected a string"),
        (lambda m: m["tensors"][ROW].update(group_size=0), "group sizes"),
        (lambda m: m["tensors"][ROW].update(group_size=-32), "group_size is -32, expected"),
        (lambda m: m["tensors"][ROW].update(shape=[97, 64]), r"the shape is \[97, 64\], but config.json requires"),
        (lambda m: m["tensors"][ROW].update(shape=[]), r"shape is \[\], expected 1 to 4 integers from 1"),
        (lambda m: m["tensors"][ROW].update(shape=[1 << 70, 64]), "shape is .*, expected 1 to 4 integers"),
        (lambda m: m["tensors"][ROW].update(shape=None), "'shape' .* is missing"),
        (lambda m: m["tensors"][ROW].update(sha256=5), "sha256 is 5, expected a string"),
        (lambda m: m["tensors"][ROW].update(relative_error=float("nan")), "relative_error"),
        (lambda m: m["tensors"][ROW]["parts"].pop("scales"), "the parts are .*, but its format has"),
        (lambda m: m["tensors"][ROW]["parts"].update(zeros=part_of(m)), "no zero points"),
        (lambda m: part_of(m).update(dtype="int8"), "are not uint8"),
        (lambda m: part_of(m).update(dtype="object"), "are not uint8"),
        (lambda m: part_of(m).update(shape=[6, 8, 64]), "are not uint8"),
        (lambda m: part_of(m).update(nbytes=1), "it has 1 bytes, but its shape needs 3,072"),
        (lambda m: part_of(m).update(offset=-64), "part codes: offset is -64, expected an integer from 0"),
        (lambda m: part_of(m).update(offset=1.5), "offset is 1.5, expected an integer"),
        (lambda m: part_of(m).update(offset=part_of(m)["offset"] + 1), "not a multiple of 64"),
        (lambda m: part_of(m).update(offset=part_of(m, "scales")["offset"]), "overlap"),
        (lambda m: part_of(m).update(offset=1 << 40), "ends at byte"),
    ],
)
def test_hostile_manifests(model: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    manifest = json.loads((model / MANIFEST_NAME).read_text())
    change(manifest)
    write_json(model / MANIFEST_NAME, manifest)
    with pytest.raises(ContainerError, match=message) as caught:
        open_model(model)
    assert "\n" not in str(caught.value)


def test_missing_and_truncated_files(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="is not a folder"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ContainerError, match=r"has no manifest\.json"):
        open_model(tmp_path)
    assert not is_model_folder(tmp_path)
    assert is_model_folder(model)
    data = (model / WEIGHTS_NAME).read_bytes()
    (model / WEIGHTS_NAME).write_bytes(data[:-64])
    with pytest.raises(ContainerError, match="bytes, but the manifest says"):
        open_model(model)
    (model / WEIGHTS_NAME).unlink()
    with pytest.raises(ContainerError, match="does not exist"):
        open_model(model)


def test_weights_that_shrink_after_opening(model: Path) -> None:
    folder = open_model(model)
    (model / WEIGHTS_NAME).write_bytes(b"short")
    with pytest.raises(ContainerError, match="changed its size"):
        folder.tensor(ROW)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "JSON list"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "cannot be parsed"),
        (b" " * ((16 << 20) + 1), "is larger than"),
    ],
)
def test_invalid_manifests(model: Path, content: bytes, message: str) -> None:
    (model / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ContainerError, match=message):
        open_model(model)


def test_config_of_another_model(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "num_hidden_layers": 3})
    with pytest.raises(ContainerError, match=r"missing, but required by config\.json"):
        open_model(model)
    (model / "config.json").write_text("{")
    with pytest.raises(ContainerError, match="not valid JSON"):
        open_model(model)
    (model / "config.json").unlink()
    with pytest.raises(ContainerError, match="does not exist"):
        open_model(model)


JSON_VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
)


@settings(max_examples=count(200, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_manifest_breaks_the_reader(model: Path, made: Path, data: st.DataObject) -> None:
    """Replace a value of the manifest: the result is a model or a ContainerError."""
    manifest = json.loads((made / "model" / MANIFEST_NAME).read_text())
    place: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else None
        if key is None:
            break
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(JSON_VALUES)
            break
        place = place[key]
    write_json(model / MANIFEST_NAME, manifest)
    with suppress(ContainerError):
        folder = open_model(model)
        for name in folder.names:
            formats.dequantise(folder.tensor(name))
        assert set(verify(folder)) <= {*folder.names, *folder.manifest["files"], PADDING}


def resident(path: Path) -> int:
    """Return the bytes of a mapped file that this process can read without a page fault."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for pages")
def test_prefetch_maps_every_page(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_POPULATE_PIECE", 8192)
    folder = open_model(model)
    assert resident(model / WEIGHTS_NAME) == 0
    folder.prefetch().join()
    assert resident(model / WEIGHTS_NAME) >= folder.total_bytes
    assert verify(folder) == {}


def test_a_system_without_prefetch_is_not_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_POPULATE_READ", 9999)
    folder = open_model(model)
    folder.prefetch().join()
    assert verify(folder) == {}
