"""A model on the GPU from the outside: `qwchat.load` and the command line, on the fake driver with NumPy twins."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwchat
from quant import convert
from qwchat import placement
from qwchat.cli.main import main
from qwchat.cuda import manifest
from qwchat.errors import GpuLostError
from qwchat.events import Done
from qwchat.model.gpu_memory import gpu_memory, stored_tensors
from qwchat.model.split_decoder import SplitDecoder
from qwchat.request import SamplingParams
from tests.cuda.fake_driver import FakeDriver
from tests.cuda.test_failures import ENDING, last_wait
from tests.cuda.twin_kernels import twin_executor
from tests.quant.checkpoints import make_checkpoint
from tests.tiers import count

SHAPES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
MESSAGES = [{"role": "user", "content": "the hello in an answer on the hello"}]
GREEDY = SamplingParams(temperature=0.0)
CHAT = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repeat_penalty=1.05)


@pytest.fixture(autouse=True)
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a converted model of two layers with heads of 64 dimensions."""
    path = tmp_path_factory.mktemp("gpu")
    list(convert(make_checkpoint(path / "tiny", config_overrides=SHAPES), path / "tiny-q4"))
    return path / "tiny-q4"


def new_driver(**options: Any) -> FakeDriver:
    return FakeDriver(execute=twin_executor(manifest.kernels()), **options)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """Return the driver of this machine."""
    made = new_driver()
    monkeypatch.setattr(placement, "_libcuda", lambda: made)
    monkeypatch.setattr(placement, "LEAST_BYTES", 0)
    yield made
    assert made.leaked == []
    assert not made.retained.total()


def reply(model: qwchat.Model, settings: SamplingParams, **options: Any) -> Done:
    """Return the end of a reply of 12 tokens to a prompt that is evaluated from its beginning.

    A token's logits in a prefill pass are not those in a decode pass, bit for bit.
    """
    model.cached_context.clear()
    *_, end = model.chat(MESSAGES, settings=settings, seed=3, max_tokens=12, **options)
    assert isinstance(end, Done)
    return end


@pytest.mark.parametrize(("device", "layers"), [("auto", None), ("cuda", None), ("cuda:0", 1)])
def test_a_reply_is_that_of_the_cpu(driver: FakeDriver, folder: Path, device: str, layers: int | None) -> None:
    with qwchat.load(folder, device="cpu", context=128) as cpu:
        expected = reply(cpu, GREEDY)
        assert driver.log == [], "the CPU asks no driver"
    with qwchat.load(folder, device=device, gpu_layers=layers, context=128) as gpu:
        assert isinstance(gpu.engine.decoder, SplitDecoder) == (layers == 1)
        assert reply(gpu, GREEDY).token_ids == expected.token_ids


@pytest.mark.parametrize("settings", [GREEDY, CHAT])
def test_drafts_and_candidates_do_not_change_a_reply(
    driver: FakeDriver, folder: Path, settings: SamplingParams
) -> None:
    with qwchat.load(folder, device="cuda", context=128) as model:
        plain = reply(model, settings, speculate=False)
        drafts = reply(model, settings, speculate=True)
        assert drafts.token_ids == plain.token_ids
        whole = reply(model, settings, speculate=False, logprobs=3)
        assert whole.token_ids == plain.token_ids


def test_memory_is_that_of_the_estimate(driver: FakeDriver, folder: Path) -> None:
    with qwchat.load(folder, device="cuda", context=128) as model:
        config = model.config
        part = placement.part_sizes(model.folder, 128, "auto").whole.part
        expected = gpu_memory(config, stored_tensors(config, model.folder.tensor), 128, model.kv, part)
        assert sum(driver.device.live.values()) == expected.allocated


def test_a_context_that_is_lost_in_a_reply_is_an_error_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = new_driver()
    monkeypatch.setattr(placement, "_libcuda", lambda: driver)
    with qwchat.load(folder, device="cuda", context=128) as model:
        driver.lose = (len(driver.launches) + 60, 700)
        with pytest.raises(GpuLostError, match="the GPU stopped: illegal address"):
            reply(model, GREEDY)
    assert not driver.retained.total()


def program(*arguments: str) -> int:
    """Run the command line in this process, which keeps its handlers of Ctrl-C, and return the exit code."""
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    try:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.unraisablehook = hook
    return int(end.value.code or 0)


def test_one_answer_on_the_command_line(driver: FakeDriver, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("-p", "the hello", "--model", str(folder), "--max-tokens", "5", "--temp", "0", "--json", "--device")
    answers = []
    for device in ("cpu", "cuda"):
        assert program(*command, device) == 0
        answers.append(json.loads(capfd.readouterr().out))
    assert answers[0]["text"] == answers[1]["text"]
    assert "launch_graph" in driver.log


SLOW = pytest.mark.slow


@pytest.mark.parametrize("code", [2, 700, pytest.param(46, marks=SLOW), pytest.param(999, marks=SLOW)])
def test_each_call_may_fail_on_the_command_line(
    folder: Path, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(placement, "_libcuda", lambda: made[-1])
    command = ("-p", "the hello", "--model", str(folder), "--max-tokens", "2", "--device", "cuda", "--ctx", "128")
    made = [new_driver()]
    assert program(*command) == 0
    calls, ending = len(made[0].log), last_wait(made[0].log)
    capfd.readouterr()
    for number in range(0, calls, count(7, calls // 3)):
        made.append(new_driver(fail={number: code}))
        ended = program(*command)
        lines, call = capfd.readouterr().err.splitlines(), made[-1].log[number]
        if ended == 0:
            assert call in ENDING or number == ending or code == 2, f"{call}: {lines}"
            continue
        assert ended == (5 if code == 2 else 1), f"{call}: {lines}"
        assert len([line for line in lines if f"CUDA error {code} in" in line]) == 1, lines
        assert not any("Traceback" in line for line in lines)
        assert made[-1].retained.total() == (call == "release_context"), call


def test_a_chat_goes_on_after_a_lost_context(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Check that the reply ends with one line, that the session has both turns, and that the CPU gives the next."""
    driver = new_driver(lose=(40, 700))
    monkeypatch.setattr(placement, "_libcuda", lambda: driver)
    monkeypatch.setenv("QWCHAT_SESSIONS", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the hello\nthe answer\n")))
    command = ("chat", str(folder), "--device", "cuda", "--ctx", "128", "--max-tokens", "6", "--temp", "0")
    assert program(*command) == 0
    output = capfd.readouterr()
    assert [line for line in output.err.splitlines() if "error" in line] == [
        "qwchat: error: the GPU stopped: illegal address (CUDA error 700 in synchronise_stream): "
        "the next reply runs on the CPU"
    ]
    assert output.out.strip(), "the second reply"
    (session,) = tmp_path.glob("*/session.jsonl")
    nodes = [json.loads(line)["node"] for line in session.read_text().splitlines()[1:]]
    assert [node["role"] for node in nodes] == ["user", "assistant"] * 2
    assert [node["content"] for node in nodes[::2]] == ["the hello", "the answer"]
    assert [node["finish_reason"] for node in nodes[1::2]] == ["cancelled", "length"]
    assert nodes[1]["token_ids"], "what was written before the GPU stopped"
    assert not driver.retained.total()


def test_logits_of_the_python_interface(driver: FakeDriver, folder: Path) -> None:
    with qwchat.load(folder, device="cpu", context=64) as cpu, qwchat.load(folder, device="cuda", context=64) as gpu:
        ids = list(range(20))
        expected, found = (model.cached_context.logits(ids) for model in (cpu, gpu))
        assert np.abs(expected - found).max() < 0.05 * np.abs(expected).max()
