"""The commands on a small random checkpoint, with the real converter and engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quant.container import open_model
from quant.native.simd_level import current_level
from quant.verification import verify
from tests.chat.pty import Terminal
from tests.clocks import PATIENCE_SECONDS, wait_for
from tests.quant.checkpoints import make_checkpoint
from tests.starter import REAL, run_to_end
from tests.text.test_template_isolated import BUSY_IN_C, processor_time, program_with_hole

SHAPE = {"hidden_size": 128, "max_position_embeddings": 512}
PROGRAM = "from qwchat.cli.main import main; main()"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "tiny"
    return make_checkpoint(folder, config_overrides=SHAPE)


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> Path:
    """Return a models folder in which the first question converts the checkpoint."""
    folder = checkpoint.parent / "models"
    first = qwchat("-p", "hello", "-m", str(checkpoint), "--max-tokens", "4", "--temp", "0", models=folder)
    assert first.returncode == 0, first.stderr
    assert first.stderr.decode().splitlines()[0] == f"qwchat: converting tiny into {folder}/tiny-q4 (first use)"
    return folder


def qwchat(*arguments: str, models: Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "QWCHAT_MODELS": str(models), **variables}
    return run_to_end(arguments, environment, stdin, entry=REAL)


def test_the_second_question_converts_and_compiles_nothing(models: Path, checkpoint: Path) -> None:
    arguments = ("-p", "hello", "-m", str(checkpoint), "--max-tokens", "4", "--temp", "0")
    second, third = (qwchat(*arguments, models=models) for _ in range(2))
    assert second.stdout == third.stdout
    assert second.stderr.decode().splitlines()[0].endswith("the reply was cut off at --max-tokens 4")
    assert len(second.stderr.splitlines()) == 2


def test_json_and_seeds(models: Path) -> None:
    arguments = ("-p", "hello", "-m", "tiny-q4", "--max-tokens", "8", "--temp", "1.5", "--seed", "7", "--json")
    first, second = (json.loads(qwchat(*arguments, models=models).stdout) for _ in range(2))
    assert first["text"] == second["text"]
    assert first["model"]["fingerprint"] == open_model(models / "tiny-q4").fingerprint
    assert first["tokens"]["generated"] == 8
    assert first["finish_reason"] == "length"


def test_several_replies_share_the_prefill(models: Path) -> None:
    arguments = ("-p", "hello the hell " * 20, "-m", "tiny-q4", "--max-tokens", "6", "--temp", "1.5", "--seed", "7")
    answers = json.loads(qwchat(*arguments, "-n", "4", "--json", models=models).stdout)["answers"]
    counts = [(answer["tokens"]["prompt"], answer["tokens"]["cached"]) for answer in answers]
    prompt = counts[0][0]
    assert prompt > 100
    # The last token is always evaluated again, for its logits.
    assert counts == [(prompt, 0), *[(prompt, prompt - 1)] * 3]
    assert len({answer["text"] for answer in answers}) > 1
    alone = json.loads(qwchat(*arguments[:-1], "9", "--json", models=models).stdout)
    assert alone["text"] == answers[2]["text"]


def test_random_weights_follow_a_schema(models: Path) -> None:
    schema = '{"type": "object", "properties": {"the": {"type": "string"}}, "required": ["the"]}'
    arguments = ("-p", "hello", "-m", "tiny-q4", "--temp", "1", "--seed", "3", "--json-schema", "-", "-q")
    result = qwchat(*arguments, "--max-tokens", "40", "-n", "3", models=models, stdin=schema.encode())
    assert result.returncode == 0, result.stderr
    replies = result.stdout.decode().split("\n\n")
    assert len(replies) == 3
    assert all("the" in json.loads(reply) for reply in replies)
    short = qwchat(*arguments, "--max-tokens", "3", models=models, stdin=schema.encode())
    assert (short.returncode, short.stdout[:1]) == (6, b"{")
    assert short.stderr.decode() == (
        "qwchat: error: the reply does not meet --json-schema: it was cut off at --max-tokens 3; allow more tokens\n"
    )


def test_a_short_reply_into_a_pipe_imports_only_what_it_needs(models: Path) -> None:
    program = PROGRAM.replace("; main()", "; import sys, atexit; atexit.register(lambda: print(*sys.modules)); main()")
    environment = {**os.environ, "QWCHAT_MODELS": str(models)}
    arguments = [sys.executable, "-c", program, "-p", "hello", "-m", "tiny-q4", "--max-tokens", "2"]
    ran = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, check=True, stdin=subprocess.DEVNULL
    )
    assert "qwchat.api" in ran.stdout.split()
    idle = {
        "llguidance",
        "markdown_it",
        "numba",
        "prompt_toolkit",
        "pydantic",
        "pygments",
        "rich",
        "tomllib",
        "wcwidth",
    }
    idle |= {"qwchat.constraints", "qwchat.chat.editor.history", "qwchat.markdown.stream_parser"}
    assert not idle & set(ran.stdout.split())


@pytest.mark.slow
def test_a_session_continues_from_its_snapshot(models: Path, tmp_path: Path) -> None:
    def ask(text: str, sessions: str, *arguments: str) -> tuple[dict[str, Any], str]:
        settings = ("--session", "talk", "--temp", "0", "--max-tokens", "12", "--json", *arguments)
        ran = qwchat("-p", text, "-m", "tiny-q4", *settings, models=models, QWCHAT_SESSIONS=str(tmp_path / sessions))
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout), ran.stderr.decode()

    first, _ = ask("hello the hell " * 20, "a", "--snapshot", "on", "--kv", "q8")
    held = first["tokens"]["prompt"] + first["tokens"]["generated"]
    [path] = (tmp_path / "a").glob("*/kv.snapshot")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    resumed, notices = ask("the other", "a", "--ctx", "400", "--kv", "q8")
    again, _ = ask("the other", "b", "--snapshot", "off", "--kv", "q8")
    assert notices == ""
    # A reply's last token is evaluated only when the conversation continues.
    assert held - 1 <= resumed["tokens"]["cached"] <= held
    assert again["tokens"]["cached"] == 0
    assert resumed["text"] == again["text"] != ""
    other, notices = ask("the other", "c", "--kv", "f32")
    assert other["tokens"]["cached"] == 0
    assert (
        notices
        == f"qwchat: {path.parent.parent.with_name('c') / path.parent.name}/kv.snapshot has another --kv than "
        + ("f32: the conversation will be evaluated again\n")
    )


def test_a_prompt_that_does_not_fit_names_both_numbers(models: Path) -> None:
    result = qwchat("-p", "hello " * 600, "-m", "tiny-q4", "--ctx", "300", models=models)
    assert (result.returncode, result.stdout) == (4, b"")
    [line] = result.stderr.decode().splitlines()
    assert line.startswith("qwchat: error: the prompt has ")
    assert "the context holds 300" in line


def test_a_context_beyond_the_model_is_refused(models: Path) -> None:
    result = qwchat("-p", "hello", "-m", "tiny-q4", "--ctx", "600", models=models)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(
        b"qwchat: error: --ctx must be from 1 to 512 tokens, the maximum of this model, not "
    )


def test_show_agrees_with_the_file(models: Path) -> None:
    folder = open_model(models / "tiny-q4")
    shown = json.loads(qwchat("show", "tiny-q4", "--json", models=models).stdout)
    assert shown["bits_per_weight"] == folder.bits_per_weight
    assert shown["bytes"] == (models / "tiny-q4" / "weights.bin").stat().st_size
    assert shown["bits_per_weight"] == 8 * shown["bytes"] / shown["parameters"]
    assert {tensor["name"]: tensor["format"] for tensor in shown["tensors"]} == {
        name: folder.tensor(name).format for name in folder.names
    }
    assert shown["files"]["weights.bin"] == shown["bytes"]
    text = qwchat("show", "tiny-q4", models=models).stdout.decode()
    assert f"bits per weight  {folder.bits_per_weight:.4f}\n" in text
    assert "layers.*.self_attn.q_proj.weight          0       q6      128 × 128" in text


def test_show_of_a_checkpoint_that_is_not_converted(checkpoint: Path, tmp_path: Path) -> None:
    text = qwchat("show", str(checkpoint), models=tmp_path).stdout.decode()
    assert text.startswith("model            tiny (checkpoint, not converted yet)\n")
    assert "bits per weight  16.0000\n" in text


def test_list(models: Path) -> None:
    listed = json.loads(qwchat("list", "--json", models=models).stdout)
    assert listed["folder"] == str(models)
    [entry] = [entry for entry in listed["models"] if entry["name"] == "tiny-q4"]
    assert entry["bits_per_weight"] == open_model(models / "tiny-q4").bits_per_weight
    [line] = [line for line in qwchat("list", models=models).stdout.decode().splitlines() if line.startswith("tiny-q4")]
    assert line.split()[1] == "q4"


@pytest.mark.slow
def test_bench(models: Path) -> None:
    arguments = ("--prompt-tokens", "40", "--new-tokens", "5", "--depth", "20", "--rounds", "2")
    figures = json.loads(qwchat("bench", "tiny-q4", *arguments, "--json", models=models).stdout)
    assert len(figures["prefill"]["rounds"]) == len(figures["decode"]["rounds"]) == 2
    assert 0 < figures["prefill"]["share_of_int8_peak"] < 1
    assert figures["decode"]["share_of_read_bandwidth"] > 0
    folder = open_model(models / "tiny-q4")
    embedding = folder.tensor("model.embed_tokens.weight").nbytes
    assert figures["decode"]["bytes_per_token"] == sum(folder.tensor(name).nbytes for name in folder.names) - embedding
    table = qwchat("bench", "tiny-q4", *arguments, models=models).stdout.decode().splitlines()
    assert table[0].startswith("tiny-q4: ")
    assert f" threads, {figures['simd']}, median of 2 rounds" in table[0]
    assert figures["simd"] == current_level()
    assert [line.split()[0] for line in table[3:]] == ["prefill", "decode"]


@pytest.mark.slow
def test_bench_speculates_only_when_asked(models: Path) -> None:
    arguments = ("--prompt-tokens", "20", "--new-tokens", "30", "--rounds", "1", "--json")
    for extra, expected in (((), False), (("--speculate",), True)):
        figures = json.loads(qwchat("bench", "tiny-q4", *arguments, *extra, models=models).stdout)
        assert figures["speculate"] is expected
        assert figures["decode"]["tokens_per_second"] > 0


def test_bench_refuses_numbers_that_do_not_fit(models: Path) -> None:
    result = qwchat("bench", "tiny-q4", "--depth", "600", models=models)
    assert (result.returncode, result.stdout) == (2, b"")
    result = qwchat("bench", "tiny-q4", "--rounds", "0", models=models)
    assert result.stderr == b"qwchat: error: --rounds must be at least 1, not 0\n"


def test_convert_prints_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    result = qwchat("convert", str(checkpoint), "--preset", "q8", models=tmp_path / "new")
    assert result.returncode == 0
    assert result.stdout.decode() == f"{tmp_path}/new/tiny-q8\n"
    assert result.stderr.decode().startswith("qwchat: converted ")
    again = qwchat("convert", str(checkpoint), "--preset", "q8", models=tmp_path / "new")
    assert again.returncode == 2
    assert b"already contains a model; use --force to replace it" in again.stderr
    forced = qwchat("convert", str(checkpoint), str(tmp_path / "new" / "tiny-q8"), "--force", "--json", models=tmp_path)
    assert json.loads(forced.stdout)["preset"] == "q4"


def test_a_dry_run_begins_with_the_total_and_groups_layers(tmp_path: Path) -> None:
    shape = SHAPE | {"num_hidden_layers": 17, "intermediate_size": 256}
    source = make_checkpoint(tmp_path / "deep", config_overrides=shape)
    result = qwchat("convert", str(source), "--dry-run", models=tmp_path / "new")
    total, empty, *lines = result.stdout.decode().splitlines()
    as_json = json.loads(qwchat("convert", str(source), "--dry-run", "--json", models=tmp_path / "new").stdout)
    size, bits = as_json["bytes_out"], as_json["bits_per_weight"]
    assert total == (
        f"{as_json['bytes_in'] / 1e6:.1f} MB would become {size / 1e6:.1f} MB ({size:,} bytes, {bits:.3f} bits per "
        f"weight, preset q4) in {tmp_path}/new/deep-q4"
    )
    assert empty == ""
    assert [re.split(r"  +", line)[:-2] for line in lines] == [
        ["", "tensors", "format", "size"][:3],
        ["embed_tokens", "q6"],
        ["layers 0–1", "norms and biases", "vector"],
        ["", "q, k, v, o, down", "q6"],
        ["", "gate, up", "q4"],
        ["layers 2–16", "norms and biases", "vector"],
        ["", "q, k, v, o, gate, up, down", "q4"],
        ["norm", "vector"],
        ["lm_head", "q6"],
    ]
    assert max(map(len, lines)) <= 80
    assert len(as_json["tensors"]) == 17 * 12 + 3
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("convert", "/nowhere"), 3, "/nowhere is not a folder"),
        (("convert", "{checkpoint}", "--preset", "q5"), 2, "unknown preset 'q5'; choose one of q4, q4-small, q6, q8, "),
        (("convert", "{checkpoint}", "--bits", "3"), 2, "3 bits are not supported; choose 4, 6 or 8"),
        (("convert", "{checkpoint}", "{checkpoint}/inside"), 2, "{checkpoint}/inside is inside the source"),
        (("convert",), 2, "missing argument 'SOURCE'"),
        (("show", "nothing"), 3, "there is no model 'nothing'"),
        (("-p", "hi", "-m", "{damaged}"), 3, "{damaged}/manifest.json"),
    ],
)
def test_invalid_requests(
    checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    words = [word.format(checkpoint=checkpoint, damaged=damaged) for word in arguments]
    result = qwchat(*words, models=tmp_path)
    assert (result.returncode, result.stdout) == (code, b"")
    [line] = result.stderr.decode().splitlines()
    assert line.startswith(f"qwchat: error: {message.format(checkpoint=checkpoint, damaged=damaged)}")


def test_a_changed_checkpoint_is_converted_again_with_a_notice(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "src", seed=1, config_overrides=SHAPE)
    arguments = ("-p", "hello", "-m", str(source), "--max-tokens", "1", "-q")
    assert qwchat(*arguments, models=tmp_path / "models").returncode == 0
    before = open_model(tmp_path / "models" / "src-q4").source_fingerprint
    make_checkpoint(source, seed=2, config_overrides=SHAPE)
    result = qwchat(*arguments[:-1], models=tmp_path / "models")
    assert result.stderr.decode().splitlines()[0].endswith("/src-q4 (the checkpoint has changed)")
    assert open_model(tmp_path / "models" / "src-q4").source_fingerprint != before


@pytest.mark.slow
def test_first_runs_at_the_same_moment_do_not_harm_each_other(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "src", config_overrides=SHAPE)
    results: list[subprocess.CompletedProcess[bytes]] = []
    arguments = ("-p", "hello", "-m", str(source), "--max-tokens", "3", "--temp", "0")
    threads = [
        threading.Thread(target=lambda: results.append(qwchat(*arguments, models=tmp_path / "models")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    assert len({result.stdout for result in results}) == 1
    assert verify(open_model(tmp_path / "models" / "src-q4")) == {}
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".last-used", "src-q4"]


@pytest.mark.slow
def test_ctrl_c_during_a_conversion_allows_to_resume(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8}
    source = make_checkpoint(tmp_path / "src", config_overrides=wide)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "convert", str(source), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / ".out.partial" / "journal.jsonl").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (
        130,
        b"",
        b"finished tensors are kept: run the same command with --resume to continue\nqwchat: interrupted\n",
    )
    assert not (tmp_path / "out").exists()
    resumed = qwchat("convert", str(source), str(tmp_path / "out"), "--resume", models=tmp_path)
    assert resumed.returncode == 0
    assert resumed.stderr.decode().startswith("qwchat: resuming: ")


def test_a_damaged_conversion_is_repeated(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "src", config_overrides=SHAPE)
    models = tmp_path / "models"
    (models / "src-q4").mkdir(parents=True)
    (models / "src-q4" / "manifest.json").write_text("{")
    result = qwchat("-p", "hello", "-m", str(source), "--max-tokens", "1", models=models)
    assert result.returncode == 0, result.stderr
    notice = f"qwchat: converting src into {models}/src-q4 (its conversion is damaged)"
    assert result.stderr.decode().splitlines()[0] == notice


@pytest.mark.slow
def test_terminal_settings_are_restored(models: Path, tmp_path: Path) -> None:
    program = f"'{sys.executable}' -c '{PROGRAM}' chat tiny-q4"
    command = ["/bin/sh", "-c", f"stty -a > {tmp_path}/before; {program}; stty -a > {tmp_path}/after"]
    variables = {"QWCHAT_MODELS": str(models), "HOME": os.environ.get("HOME", "/")}
    with Terminal(models=tmp_path, command=command, variables=variables) as terminal:
        terminal.prompt()
        terminal.type("hello\r\x03\x04")
        terminal.end()
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()


def hostile(models: Path, name: str) -> Path:
    folder = models / name
    shutil.copytree(models / "tiny-q4", folder)
    return folder


def refused(models: Path, name: str) -> str:
    """Return the error of a question to a model, which must exit with 3 and without output."""
    asked = qwchat("-p", "hello", "-m", name, models=models)
    assert (asked.returncode, asked.stdout) == (3, b"")
    (line,) = asked.stderr.decode().splitlines()
    return line


def test_a_hostile_tokenizer_ends_with_one_line(models: Path) -> None:
    path = hostile(models, "grows") / "tokenizer.json"
    values = json.loads(path.read_text())
    grow = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 30_000}
    path.write_text(json.dumps({**values, "normalizer": {"type": "Sequence", "normalizers": [grow, grow, grow]}}))
    assert refused(models, "grows") == (
        f"qwchat: error: {path}: the normalizer 'Replace' is not supported (NFC or none is): "
        "only tokenizers of the Qwen family are supported"
    )


def test_a_tokenizer_of_another_model_ends_with_one_line(models: Path) -> None:
    path = hostile(models, "foreign") / "tokenizer.json"
    values = json.loads(path.read_text())
    rows = json.loads((path.parent / "config.json").read_text())["vocab_size"]
    values["added_tokens"].append({"id": rows, "content": "<more>"})
    path.write_text(json.dumps(values))
    assert (
        f"tokenizer.json has the token id {rows:,}, but config.json has a vocab_size of {rows:,}: restore"
        in refused(models, "foreign")
    )


def test_a_hostile_template_ends_with_one_line(models: Path) -> None:
    path = hostile(models, "endless") / "chat_template.jinja"
    path.write_text("{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}")
    assert refused(models, "endless") == (
        f"qwchat: error: the chat template in {path} cannot be used: it runs longer than any chat template "
        "needs: restore the template from the model's source"
    )
    path.write_text("{% if true %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}")
    assert qwchat("-p", "hello", "-m", "endless", "--max-tokens", "4", models=models).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the rendering process in /proc")
@pytest.mark.slow
def test_ctrl_c_ends_a_template_that_keeps_c_busy(models: Path) -> None:
    (hostile(models, "busy") / "chat_template.jinja").write_text("{{ messages }}")
    program = (
        "import sys; from qwchat.cli.main import main; from qwchat.text.template import isolated; "
        "isolated.CPU_BASE = isolated.WALL_BASE = 300; isolated._PROGRAM = sys.argv[1]; "
        "main(['-p', 'hello', '-m', 'busy'])"
    )
    asked = subprocess.Popen(
        [sys.executable, "-c", program, program_with_hole(BUSY_IN_C)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "QWCHAT_MODELS": str(models)},
    )
    children = Path(f"/proc/{asked.pid}/task/{asked.pid}/children")
    wait_for(lambda: any(processor_time(int(child)) > 50 for child in children.read_text().split()), "work")
    asked.send_signal(signal.SIGINT)
    output, errors = asked.communicate(timeout=PATIENCE_SECONDS)
    assert (asked.returncode, output, errors) == (130, b"", b"qwchat: interrupted\n")
