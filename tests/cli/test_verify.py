"""Damaged models: `qwchat verify`, and no reply with exit code 0 from a damaged weights.bin."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from quant import convert
from quant.container import MANIFEST_NAME, WEIGHTS_NAME, open_model
from qwchat import integrity
from qwchat.cli.app import run_app
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.guard import run_guarded
from qwchat.models_folder import embedded_checkpoint, is_checkpoint

PAGE = 4096
PROGRAM = "from qwchat.cli.main import main; main()"
ASK = ("-p", "What is 2 + 3?", "--temp", "0", "--max-tokens", "2", "-q")
RECORD = integrity.record_path()
DIFFERS = "its content does not match the checksum in manifest.json"

pytestmark = pytest.mark.skipif(not is_checkpoint(embedded_checkpoint()), reason="models/mini has no weights")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with mini as q4 and as q8."""
    folder = tmp_path_factory.mktemp("intact")
    for preset in ("q4", "q8"):
        list(convert(embedded_checkpoint(), folder / f"mini-{preset}", preset=preset))
    return folder


@pytest.fixture
def models(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "models"))


@pytest.fixture(autouse=True)
def _private_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "record_path", lambda: tmp_path / "verification" / "intact")


def qwchat(*arguments: str, models: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the program in this process, with the real engine."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    streams = {"stdin": io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"), "stdout": out, "stderr": err}
    with mock.patch.multiple(sys, **streams), mock.patch.dict(os.environ, {"QWCHAT_MODELS": str(models)}):
        code = run_guarded(lambda: run_app(arguments, Dependencies()), debug=False)
    for stream in (out, err):
        stream.flush()
    return subprocess.CompletedProcess(arguments, code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())


Damage = Callable[[bytearray, random.Random, list[tuple[int, int]]], None]


def flip_a_bit(data: bytearray, drawn: random.Random, parts: list[tuple[int, int]]) -> None:
    data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)


def flip_a_bit_of_any_tensor(data: bytearray, drawn: random.Random, parts: list[tuple[int, int]]) -> None:
    start, stop = drawn.choice(parts)  # Few tensors hold most bytes, so each tensor is equally likely.
    data[drawn.randrange(start, stop)] ^= 1 << drawn.randrange(8)


def zero_a_page(data: bytearray, drawn: random.Random, parts: list[tuple[int, int]]) -> None:
    start = drawn.randrange(len(data) // PAGE) * PAGE
    data[start : start + PAGE] = bytes(PAGE)


def fill_a_page(data: bytearray, drawn: random.Random, parts: list[tuple[int, int]]) -> None:
    start = drawn.randrange(len(data) // PAGE) * PAGE
    data[start : start + PAGE] = drawn.randbytes(PAGE)


def truncate(data: bytearray, drawn: random.Random, parts: list[tuple[int, int]]) -> None:
    del data[drawn.randrange(len(data)) :]


def extend(data: bytearray, drawn: random.Random, parts: list[tuple[int, int]]) -> None:
    data += drawn.randbytes(drawn.randrange(1, 2 * PAGE))


def swap_tensors(data: bytearray, drawn: random.Random, parts: list[tuple[int, int]]) -> None:
    start, stop = drawn.choice([bounds for bounds in parts if bounds[1] - bounds[0] >= 64])
    others = [bounds for bounds in parts if bounds[1] - bounds[0] == stop - start and bounds[0] != start]
    other = drawn.choice(others)[0] if others else (start + 64) % (len(data) - (stop - start))
    mine, its = data[start:stop], data[other : other + stop - start]
    data[other : other + stop - start], data[start:stop] = mine, its


DAMAGES = (flip_a_bit, flip_a_bit_of_any_tensor, zero_a_page, fill_a_page, truncate, extend, swap_tensors)


def damaged(model: Path, drawn: random.Random, damage: Damage) -> Iterator[bytes]:
    """Damage a model's weights, yield the original bytes, and restore them."""
    path = model / WEIGHTS_NAME
    before = path.read_bytes()
    entries = open_model(model).manifest["tensors"].values()
    parts = [(part["offset"], part["offset"] + part["nbytes"]) for entry in entries for part in entry["parts"].values()]
    data = bytearray(before)
    while data == before:
        damage(data, drawn, parts)
    path.write_bytes(data)
    yield before
    path.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["q4", "q8"])
def test_no_damaged_weights_give_exit_code_0(models: Path, preset: str) -> None:
    drawn = random.Random(preset)
    name = f"mini-{preset}"
    assert qwchat(*ASK, "-m", name, models=models).returncode == 0
    for damage in DAMAGES:
        for _ in range(6):
            for _ in damaged(models / name, drawn, damage):
                result = qwchat(*ASK, "-m", name, models=models)
                assert result.returncode == 3, (damage.__name__, result.stdout)
                [line] = result.stderr.splitlines()
                assert line.startswith(f"qwchat: error: {models / name}"), line
                assert qwchat("verify", name, "-q", models=models).returncode == 3
    assert qwchat(*ASK, "-m", name, models=models).returncode == 0


def test_the_error_names_the_tensor_and_the_command(models: Path) -> None:
    for _ in damaged(models / "mini-q8", random.Random(1), flip_a_bit_of_any_tensor):
        result = qwchat("verify", "mini-q8", models=models)
        command = f"qwchat convert {embedded_checkpoint()} {models}/mini-q8 --preset q8 --force"
        [line] = result.stderr.splitlines()
        tensor = next(name for name in open_model(models / "mini-q8").names if f"tensor {name} is damaged" in line)
        expected = f"qwchat: error: {models}/mini-q8: tensor {tensor} is damaged ({DIFFERS}): convert it again with "
        assert line == expected + command
        assert (result.returncode, result.stdout) == (3, "")
        assert qwchat(*ASK, "-m", "mini-q8", models=models).stderr == result.stderr
        assert qwchat("bench", "mini-q8", "--rounds", "1", "-q", models=models).stderr == result.stderr
    # The advice works, and the new model is intact.
    assert qwchat(*command.split()[1:], models=models).returncode == 0
    assert qwchat("verify", "mini-q8", models=models).returncode == 0


def test_a_missing_checkpoint_is_named(models: Path) -> None:
    manifest = json.loads((models / "mini-q4" / MANIFEST_NAME).read_text())
    manifest["source"]["name"], manifest["settings"] = "My model", {"preset": "lin4", "group_size": 64}
    (models / "mini-q4" / MANIFEST_NAME).write_text(json.dumps(manifest))
    for _ in damaged(models / "mini-q4", random.Random(2), flip_a_bit_of_any_tensor):
        assert qwchat("verify", "mini-q4", models=models).stderr.endswith(
            f": convert it again with qwchat convert SOURCE {models}/mini-q4 --preset lin4 --group-size 64 --force, "
            "where SOURCE is the folder of the checkpoint My model\n"
        )


def test_a_pulled_model_is_pulled_again(models: Path) -> None:
    manifest = json.loads((models / "mini-q8" / MANIFEST_NAME).read_text())
    manifest["source"] |= {"repository": "Qwen/Mini", "revision": "abc123"}
    (models / "mini-q8" / MANIFEST_NAME).write_text(json.dumps(manifest))
    for _ in damaged(models / "mini-q8", random.Random(2), flip_a_bit_of_any_tensor):
        result = qwchat("verify", "mini-q8", models=models)
        assert result.returncode == 3
        assert "mini-q8: tensor model." in result.stderr
        assert result.stderr.endswith(
            ": remove it with qwchat rm mini-q8, then pull it again with "
            "qwchat pull Qwen/Mini@abc123 --as mini-q8 --preset q8\n"
        )


def test_verify_prints_one_line_or_one_object(models: Path) -> None:
    folder = open_model(models / "mini-q4")
    files = list(folder.manifest["files"])
    size = folder.total_bytes + sum((models / "mini-q4" / name).stat().st_size for name in files)
    for quiet in ((), ("-q",)):
        result = qwchat("verify", "mini-q4", *quiet, models=models)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == (
            f"mini-q4 is intact: {len(folder.names)} tensors and {len(files)} other files ({size / 1e6:.1f} MB) match "
            "manifest.json\n"
        )
    (models / "mini-q4" / "generation_config.json").write_text("{}")
    result = qwchat("verify", "mini-q4", "--json", models=models)
    assert result.returncode == 3
    found = json.loads(result.stdout)
    assert found | {"remedy": "", "files": []} == {
        "name": "mini-q4",
        "path": f"{models}/mini-q4",
        "intact": False,
        "bytes": size - folder.manifest["files"]["generation_config.json"]["bytes"] + 2,
        "tensors": len(folder.names),
        "files": [],
        "not_covered": [],
        "damaged": [{"name": "generation_config.json", "problem": DIFFERS}],
        "remedy": "",
    }
    assert sorted(found["files"]) == sorted(files)
    assert found["remedy"].startswith("convert it again with qwchat convert ")
    (models / "mini-q4" / WEIGHTS_NAME).write_bytes(b"")
    result = qwchat("verify", "mini-q4", "--json", models=models)
    assert (result.returncode, json.loads(result.stdout)["intact"]) == (3, False)
    assert "has 0 bytes, but the manifest says" in json.loads(result.stdout)["error"]


def test_files_without_a_checksum_are_named(models: Path) -> None:
    manifest = json.loads((models / "mini-q4" / MANIFEST_NAME).read_text())
    del manifest["files"]["tokenizer.json"]
    (models / "mini-q4" / MANIFEST_NAME).write_text(json.dumps(manifest))
    result = qwchat("verify", "mini-q4", models=models)
    assert result.stdout.endswith(" match manifest.json, which has no checksum of tokenizer.json\n")
    assert json.loads(qwchat("verify", "mini-q4", "--json", models=models).stdout)["not_covered"] == ["tokenizer.json"]


def test_an_unconverted_checkpoint_is_refused_with_a_remedy(tmp_path: Path, intact: Path) -> None:
    result = qwchat("verify", models=tmp_path / "none")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"qwchat: error: {embedded_checkpoint()} is a checkpoint without checksums: convert it "
        f"with qwchat convert {embedded_checkpoint()}, then verify the converted model\n"
    )
    result = qwchat("verify", models=intact)
    assert result.returncode == 0
    assert result.stdout.startswith("mini-q4 is intact: ")
    assert result.stderr == f"qwchat: mini is a checkpoint: checking its conversion, {intact}/mini-q4\n"


def test_verify_updates_the_record_of_intact_models(models: Path) -> None:
    folder = open_model(models / "mini-q4")
    assert qwchat("verify", "mini-q4", models=models).returncode == 0
    assert integrity.Integrity(folder).intact
    part = next(iter(folder.manifest["tensors"].values()))["parts"]
    offset = next(iter(part.values()))["offset"]
    # A failing disk does not change the times of the file either.
    read = os.pread
    with mock.patch.object(
        os, "pread", lambda fd, size, place: b"\1" * size if place == offset else read(fd, size, place)
    ):
        assert qwchat("verify", "mini-q4", models=models).returncode == 3
    assert not integrity.Integrity(folder).intact


def test_json_says_that_an_error_ended_the_reply(models: Path) -> None:
    for _ in damaged(models / "mini-q4", random.Random(3), flip_a_bit_of_any_tensor):
        result = qwchat(*ASK, "-m", "mini-q4", "--json", models=models)
        reply = json.loads(result.stdout)
        assert result.returncode == reply["exit_code"] == 3
        assert reply["finish_reason"] == "error"
        assert result.stderr == f"qwchat: error: {reply['error']}\n"
        assert reply["model"]["name"] == "mini-q4"
        result = qwchat(*ASK, "-m", "mini-q4", "--jsonl", models=models)
        last = json.loads(result.stdout.splitlines()[-1])
        assert (result.returncode, last["event"], last["finish_reason"]) == (3, "error", "error")


def test_a_chat_from_a_pipe_ends_with_code_3(models: Path) -> None:
    for _ in damaged(models / "mini-q4", random.Random(4), flip_a_bit_of_any_tensor):
        result = qwchat("chat", "-q", "-m", "mini-q4", "--max-tokens", "2", models=models, stdin=b"Hello\n")
        assert result.returncode == 3
        assert result.stderr.splitlines()[-1].startswith(f"qwchat: error: {models}/mini-q4: tensor ")


@pytest.mark.slow
def test_the_second_start_reads_only_the_record(models: Path) -> None:
    """Run separate processes, whose audit hook sees every file that Python opens."""
    program = (
        "import sys\nopened = []\n"
        "sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == 'open' else None)\n"
        "from qwchat.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    print(*[path for path in opened if path.endswith(('weights.bin', 'intact'))], file=sys.stderr)"
    )
    environment = {**os.environ, "QWCHAT_MODELS": str(models)}
    weights = str(models / "mini-q4" / WEIGHTS_NAME)

    def opened() -> list[str]:
        command = [sys.executable, "-c", program, *ASK, "-m", "mini-q4"]
        ran = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True, stdin=subprocess.DEVNULL
        )
        return ran.stderr.split()

    for _ in range(2):
        assert opened().count(weights) > 2
        assert opened() == [weights, weights, str(RECORD)], "examined and mapped, not read"
        Path(weights).touch()


@pytest.mark.slow
def test_verify_does_not_import_compiler_or_tokenizer(models: Path) -> None:
    program = "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); " + PROGRAM
    ran = subprocess.run(
        [sys.executable, "-c", program, "verify", "mini-q4"],
        capture_output=True,
        text=True,
        env={**os.environ, "QWCHAT_MODELS": str(models), "QWCHAT_CACHE": str(models / "cache")},
        check=True,
    )
    assert ran.stdout.startswith("mini-q4 is intact")
    heavy = {"numba", "tokenizers", "jinja2", "rich", "prompt_toolkit", "qwchat.api", "qwchat.cpu.decoder"}
    assert heavy & set(ran.stderr.split()) == set()
