"""`qwchat show` of modified models: shown, or refused on one line with exit code 3."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quant import convert
from quant.container import MANIFEST_NAME
from quant.units import data_size
from qwchat.cli import show
from qwchat.cli.guard import run_guarded
from qwchat.cli.model_options import ShowOptions
from tests.cli.fake_qwchat import dependencies
from tests.cli.runs import call
from tests.quant.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert a small checkpoint and return the model folder."""
    folder = tmp_path_factory.mktemp("made")
    make_checkpoint(folder / "source")
    for _ in convert(folder / "source", folder / "model"):
        pass
    return folder / "model"


def deep(levels: int) -> Any:
    """Return lists nested `levels` deep."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


ODD = ("\x1b[2J\n", "\ud800", "x" * 5000, 2**70, -1, 1e400, float("nan"), True, None, [], {}, [1] * 1000, deep(900))


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of nested objects, with one tensor and one file as examples."""
    for key in list(value)[: 1 if path in (("tensors",), ("files",)) else None]:
        yield (*path, key)
        if isinstance(value[key], dict):
            yield from places(value[key], (*path, key))


@pytest.mark.slow
def test_any_manifest_is_shown_or_refused_on_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(made, tmp_path / "model"))
    manifest = json.loads((made / MANIFEST_NAME).read_text())
    manifest["source"] |= {"repository": "owner/name", "revision": "0123", "licence": "mit"}
    shown = refused = 0
    for place in places(manifest):
        for odd in (*ODD, ...):
            changed = json.loads(json.dumps(manifest))
            parent = changed
            for key in place[:-1]:
                parent = parent[key]
            if odd is ...:
                del parent[place[-1]]
            else:
                parent[place[-1]] = odd
            (model / MANIFEST_NAME).write_text(json.dumps(changed))
            options = ShowOptions(model=str(model), json=bool((shown + refused) % 2))
            code = run_guarded(lambda options=options: show.run(options, dependencies()), debug=False)
            output, errors = capsys.readouterr()
            assert code in (0, 3), (place, odd, errors)
            assert len(errors.splitlines()) == (code != 0), (place, errors)
            assert len(errors) < 1000
            assert "internal error" not in errors
            assert "\x1b" not in output + errors
            shown, refused = shown + (code == 0), refused + (code == 3)
    assert shown > 20
    assert refused > 200


def test_origin_and_memory_are_shown(made: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made, tmp_path / "model"))
    manifest = json.loads((made / MANIFEST_NAME).read_text())
    manifest["source"] |= {"repository": "owner/name", "revision": "0123", "licence": "mit"}
    (model / MANIFEST_NAME).write_text(json.dumps(manifest))
    lines = call("show", str(model), models=tmp_path / "models").stdout.decode().split("\n")
    pairs = {line[:15].strip(): line[15:].strip() for line in lines[: lines.index("")]}
    assert (pairs["repository"], pairs["revision"], pairs["licence"]) == ("owner/name", "0123", "mit")
    assert re.fullmatch(r"[\d.]+ MB with 256 tokens", pairs["memory"])
    (need,) = json.loads(call("show", str(model), "--json", models=tmp_path / "models").stdout)["memory"]
    assert (need["context"], need["kv"]) == (256, "f32")
    assert pairs["memory"].startswith(data_size(need["total"]))


@pytest.mark.parametrize("key", ["name", "bytes", "fingerprint"])
def test_an_empty_source_is_refused(made: Path, tmp_path: Path, key: str) -> None:
    model = Path(shutil.copytree(made, tmp_path / "model"))
    manifest = json.loads((made / MANIFEST_NAME).read_text())
    del manifest["source"][key]
    (model / MANIFEST_NAME).write_text(json.dumps(manifest))
    result = call("show", str(model), models=tmp_path / "models")
    assert result.returncode == 3
    kind = "integer" if key == "bytes" else "string"
    assert f"source: the key '{key}' ({kind}) is missing; the model is damaged".encode() in result.stderr


def test_file_names_stay_on_one_line(made: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made, tmp_path / "a\nb"))
    (model / "extra\n\x1b[2J").touch()
    (model / "dangling").symlink_to("nowhere")
    output = call("show", str(model), models=tmp_path / "models").stdout.decode()
    assert "extra␊␛[2J" in output
    assert f"{tmp_path}/a␊b\n" in output
    assert "dangling" not in output


def test_broken_links_and_long_names_do_not_stop_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    make_checkpoint(folder)
    (folder / "model-00002-of-00002.safetensors").symlink_to("nowhere")
    result = call("list", models=tmp_path)
    assert result.returncode == 0
    assert "broken" in result.stdout.decode()


@pytest.mark.parametrize("name", ["n" * 5000, "./" + "n" * 5000, "nul\0", "half\ud800"])
def test_an_invalid_folder_name_is_a_missing_model(tmp_path: Path, name: str) -> None:
    result = call("show", name, models=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (3, 1), result.stderr[:200]
    assert b"there is no " in result.stderr
    assert len(result.stderr) < 1000
