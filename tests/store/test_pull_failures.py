"""Pulls that cannot succeed: each ends with one line, an exit code, and nothing lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quant.units import data_size
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run as convert_all
from tests.store.hub_server import HubState, serving
from tests.store.pulls import SHAPE, SHARDS, Hub, assert_same, error_line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "Tiny", shards=SHARDS, config_overrides=SHAPE)


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    state = HubState({"Qwen/Tiny": checkpoint})
    with serving(state) as url:
        yield Hub(state, url, checkpoint, tmp_path)


def test_a_disk_that_is_too_small(hub: Hub) -> None:
    largest = max(file.stat().st_size for file in hub.source.glob("*.safetensors"))
    code, _, err = hub.pull("Qwen/Tiny", FREE_DISK="70000000")
    assert code == 1
    line = error_line(err)
    assert line.startswith(f"{hub.models} has 70.00 MB free, but ")
    assert f"and its download ({data_size(largest, 2)}): free some space, or set QWCHAT_MODELS to a folder on" in line
    # Nothing but the headers was fetched.
    assert sum(path.stat().st_size for path in hub.models.rglob("model-0*")) < largest
    code, _, err = hub.pull("Qwen/Tiny", FREE_DISK="1000000000")
    assert code == 0, err


def test_a_disk_that_fills_up(hub: Hub, tmp_path: Path) -> None:
    largest = max(file.stat().st_size for file in hub.source.glob("*.safetensors"))
    code, _, err = hub.pull("Qwen/Tiny", FULL_DISK_AFTER=str(SHARDS * (1 << 20) + largest // 2))
    assert code == 1
    line = error_line(err)
    assert line.startswith(f"{hub.models}/.Tiny-q4.pull/model-0000")
    assert line.endswith(" cannot be written (No space left on device): free some space and pull again")
    assert not (hub.models / "Tiny-q4").exists()
    before = hub.state.sent.total()
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 0, err
    convert_all(hub.source, tmp_path / "local")
    assert_same(hub.models / "Tiny-q4", tmp_path / "local")
    # What was on the disk was not sent again.
    total = sum(file.stat().st_size for file in hub.source.glob("*.safetensors"))
    assert hub.state.sent.total() - before <= total - largest // 2


@pytest.mark.parametrize(
    "place",
    [
        "file/models",
        pytest.param("/proc/models", marks=pytest.mark.skipif(sys.platform != "linux", reason="a folder of Linux")),
    ],
)
def test_a_store_that_cannot_be_written(hub: Hub, place: str) -> None:
    (hub.work / "file").touch()
    code, _, err = hub.pull("Qwen/Tiny", QWCHAT_MODELS=str(hub.work / place))
    assert code == 1
    line = error_line(err)
    assert line.startswith(f"cannot write {hub.work / place} (")
    assert line.endswith("): set QWCHAT_MODELS and pull again")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store(hub: Hub) -> None:
    hub.models.mkdir()
    hub.models.chmod(0o500)
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 1
    assert error_line(err).endswith(" (Permission denied): set QWCHAT_MODELS and pull again")


def test_a_revision_that_goes_while_it_is_pulled(hub: Hub) -> None:
    hub.state.gone = True
    code, _, err = hub.pull("Qwen/Tiny")
    assert code == 3
    assert error_line(err) == "Qwen/Tiny: config.json is not there any more: pull again"


def test_a_licence_that_needs_consent(hub: Hub) -> None:
    hub.state.gated.add("Qwen/Tiny")
    consent = (
        f"Qwen/Tiny asks for consent to its licence: accept it at {hub.url}/Qwen/Tiny, then set HF_TOKEN and pull again"
    )
    code, _, err = hub.pull("Qwen/Tiny")
    assert (code, error_line(err)) == (3, consent)
    hub.state.token = "hf_right"
    code, _, err = hub.pull("Qwen/Tiny")
    assert (code, error_line(err)) == (3, consent)
    code, _, err = hub.pull("Qwen/Tiny", HF_TOKEN="hf_right")
    assert code == 0, err


def test_a_wrong_token(hub: Hub) -> None:
    hub.state.token = "hf_right"
    code, _, err = hub.pull("Qwen/Tiny", HF_TOKEN="hf_wrong")
    assert code == 3
    assert error_line(err) == "Qwen/Tiny@main: the hub refuses HF_TOKEN: set a valid token, or unset it"
    assert "hf_wrong" not in err


@pytest.mark.slow
def test_the_token_goes_to_the_hub_alone(hub: Hub) -> None:
    hub.state.token = "hf_right"
    elsewhere = HubState(hub.state.repositories)
    with serving(elsewhere) as hub.state.storage:
        code, _, err = hub.pull("Qwen/Tiny", HF_TOKEN="hf_right")
    assert code == 0, err
    assert elsewhere.sent.total() > 0
    assert elsewhere.authorised == []
    assert hub.state.authorised != []


@pytest.mark.slow
def test_a_proxy_is_used(hub: Hub) -> None:
    code, _, err = hub.pull("Qwen/Tiny", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=hub.url, http_proxy=hub.url)
    assert code == 0, err
    assert hub.state.sent.total() > 0


@pytest.mark.slow
def test_another_preset_is_another_model(hub: Hub) -> None:
    for preset in ("q4", "q8"):
        code, out, err = hub.pull("Qwen/Tiny", "--preset", preset)
        assert (code, out) == (0, f"{hub.models}/Tiny-{preset}\n"), err
    assert sorted(path.name for path in hub.models.iterdir()) == ["Tiny-q4", "Tiny-q8"]
    code, _, err = hub.pull("Qwen/Tiny", "--preset", "q8")
    assert code == 2
    assert error_line(err) == f"{hub.models}/Tiny-q8 exists already: choose another name, or remove it first"


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("Qwen/Missing", 3, "there is no repository Qwen/Missing"),
        ("private/Model", 3, "there is no repository private/Model, or HF_TOKEN does not open it"),
        ("Qwen/Tiny@v9", 3, "Qwen/Tiny has no revision v9: give a branch, a tag or a commit"),
        ("qwen2.5:7", 2, "'qwen2.5:7' is not in the catalogue: did you mean qwen2.5:7b"),
        ("nothing-like-it", 2, "is not in the catalogue: run qwchat pull for the list, or give OWNER/NAME"),
        ("../../etc/passwd", 2, "is not a repository: give OWNER/NAME or OWNER/NAME@REVISION"),
        ("Qwen/..", 2, "is not a repository"),
        ("Qwen/Tiny@../x", 2, "is not a repository"),
    ],
)
def test_names_that_lead_nowhere(hub: Hub, argument: str, code: int, message: str) -> None:
    found, out, err = hub.pull(argument)
    assert (found, out) == (code, "")
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("qwchat: error")]) == 1
    assert "Traceback" not in err


def test_no_network(hub: Hub) -> None:
    code, _, err = hub.pull("Qwen/Tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 1
    assert "the connection failed" in err
    code, _, err = hub.pull("Qwen/Tiny", HF_HUB_OFFLINE="1")
    assert code == 1
    assert "HF_HUB_OFFLINE is set: unset it to pull a model" in err


def test_pickles_are_refused(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "Pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    hub.state.repositories["Qwen/Pickled"] = folder
    code, _, err = hub.pull("Qwen/Pickled")
    assert (code, "has pickled weights alone, which can run code" in err) == (3, True)
    assert not hub.models.exists() or list(hub.models.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "", "a\nb"])
def test_folder_names_that_are_none(hub: Hub, name: str) -> None:
    code, _, err = hub.pull("Qwen/Tiny", "--as", name)
    assert (code, "is not a folder name" in err) == (2, True)
