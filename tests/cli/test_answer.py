"""Single replies: streams, options and exit codes, mostly in this process; see also test_process.py."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwchat.cli.guard import run_guarded
from qwchat.limits import MAX_SEED
from tests.cli.runs import FAKE, call, environment, run
from tests.clocks import PATIENCE_SECONDS

PERFORMANCE = "0.12 s to first token · 2 prompt tokens · prefill 4.0 tok/s · decode 4.0 tok/s · context 4/2,048"


def test_the_reply_goes_to_stdout_and_the_statistics_to_stderr(tmp_path: Path) -> None:
    result = run("-p", "hi", models=tmp_path, replies=["Good day."])
    assert result.stdout == b"Good day.\n"
    assert result.stderr.decode() == PERFORMANCE + "\n"
    assert result.returncode == 0


@pytest.mark.parametrize(
    "reply",
    [
        "ends with a newline\n",
        "# Title\n\n```py\nx = 1\n```",
        "\x1b[31mred\x1b[0m \x9b5m \r\n bell\x07",
        "日本語 🏳️‍🌈 é",
        "",
    ],
)
def test_a_pipe_gets_the_reply_byte_for_byte(tmp_path: Path, reply: str) -> None:
    for extra in ((), ("--render", "markdown"), ("--render", "plain")):
        assert call("-p", "hi", *extra, models=tmp_path, replies=[reply]).stdout == reply.encode() + b"\n"


def test_speculation_can_be_turned_off(tmp_path: Path) -> None:
    for extra, expected in (((), True), (("--speculate",), True), (("--no-speculate",), False)):
        answer = json.loads(call("-p", "hi", "--json", *extra, models=tmp_path).stdout)
        assert answer["settings"]["speculate"] is expected


def test_equal_replies_are_announced(tmp_path: Path) -> None:
    # The scripted model's generation_config.json is greedy.
    for extra in (("--temp", "0"), (), ("--temp", "1", "--top-k", "1")):
        flag = "--top-k 1" if "--top-k" in extra else "--temp 0"
        notice = f"qwchat: all 3 replies will be equal: {flag} always picks the most likely token"
        lines = call("-p", "hi", "-n", "3", *extra, models=tmp_path).stderr.decode().splitlines()
        assert (lines[0], lines.count(notice)) == (notice, 1)
        assert call("-q", "-p", "hi", "-n", "3", *extra, models=tmp_path).stderr == b""
    for extra in (("-n", "3", "--temp", "1"), ("-n", "1", "--temp", "0")):
        assert "equal" not in call("-p", "hi", *extra, models=tmp_path).stderr.decode()


def test_statistics_can_be_json(tmp_path: Path) -> None:
    result = call("-p", "hi", "--stats", "json", models=tmp_path, replies=["Good day."])
    assert result.stdout == b"Good day.\n"
    assert json.loads(result.stderr)["tokens"]["generated"] == 2
    assert call("-p", "hi", "--stats", "off", models=tmp_path).stderr == b""


def test_quiet_leaves_stderr_empty(tmp_path: Path) -> None:
    assert call("-q", "-p", "hi", "--max-tokens", "1", models=tmp_path).stderr == b""


@pytest.mark.parametrize(
    ("arguments", "stdin", "question"),
    [
        (("-p", "What is it?"), b"some text\n", "some text\n\nWhat is it?"),
        (("-p", "-"), b"from the pipe\n\n", "from the pipe"),
        ((), b"\xef\xbb\xbfbare pipe\r\n", "bare pipe"),
        (("-p", "only this"), b"", "only this"),
        (("-f", "{file}", "-p", "Why?"), b"piped", "File {file}:\n\n```txt\nfrom a file\n```\n\npiped\n\nWhy?"),
        (("-f", "{file}:1"), b"piped", "File {file}, line 1:\n\n```txt\nfrom a file\n```\n\npiped"),
        (("-f", "{file}", "-f", "{file}"), b"", "from a file"),
        (("-f", "-", "-p", "Why?"), b"piped\n", "File standard input:\n\n```\npiped\n```\n\nWhy?"),
        (("-p", "me@example.org @{file}"), b"", "me@example.org @{file}"),
        (("-p", "<|im_end|> stays"), b"", "<|im_end|> stays"),
    ],
)
def test_the_message_is_files_then_pipe_then_prompt(
    tmp_path: Path, arguments: tuple[str, ...], stdin: bytes, question: str
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("from a file\n")
    words = [word.format(file=file) for word in arguments]
    assert call(*words, models=tmp_path, stdin=stdin).stdout.decode() == f"echo: {question.format(file=file)}\n"


def test_files_are_counted_before_they_are_sent(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "c.py").write_bytes(b"\0")
    result = call("-f", f"{tmp_path}/*.py", "-p", "Why?", models=tmp_path, replies=["So."])
    assert result.stdout == b"So.\n"
    assert result.stderr.decode().splitlines()[:-1] == [
        f"qwchat: skipped: {tmp_path}/c.py is a binary file (contains NUL bytes)",
        f"qwchat: {tmp_path}/a.py: 7 tokens",
        f"qwchat: {tmp_path}/b.py: 7 tokens",
        "qwchat: 2 files, 14 tokens; context 16/2,048 with this message",
    ]
    assert call("-q", "-f", f"{tmp_path}/a.py", "-p", "Why?", models=tmp_path).stderr == b""


def test_json_is_one_object_with_everything(tmp_path: Path) -> None:
    result = call(
        "-p", "hi", "--json", "--seed", "7", "--temp", "0.5", "--stop", "day", models=tmp_path, replies=["Good day."]
    )
    assert result.stderr == b""
    assert json.loads(result.stdout) == {
        "text": "Good ",
        "finish_reason": "stop",
        "truncated": False,
        "left_out": {"dropped": 0, "summarised": 0},
        "tokens": {
            "prompt": 2,
            "cached": 0,
            "read": 2,
            "generated": 2,
            "drafted": 0,
            "accepted": 0,
            "context": 2048,
            "context_used": 4,
        },
        "timings": {
            "time_to_first_token": 0.125,
            "prefill_seconds": 0.5,
            "decode_seconds": 0.25,
            "prefill_tokens_per_second": 4.0,
            "decode_tokens_per_second": 4.0,
        },
        "model": {
            "name": "mini",
            "path": str(tmp_path / "mini"),
            "fingerprint": "0123abcd",
            "preset": "q4",
            "bits_per_weight": 4.875,
            "device": "cpu",
            "gpu_layers": 0,
            "activations": 8,
            "endpoint": None,
        },
        "settings": {
            "temperature": 0.5,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": None,
            "think_budget": 0,
            "keep_thoughts": False,
            "stop": ["day"],
            "choices": None,
            "regex": None,
            "json_schema": None,
            "template_var": None,
            "speculate": True,
            "loop_guard": 1000,
            "overflow": "ask",
        },
        "seed": 7,
    }


def test_jsonl_prints_events_as_they_happen(tmp_path: Path) -> None:
    result = call("-p", "hi", "--jsonl", "--max-tokens", "2", models=tmp_path, replies=["one two three"])
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "prefill", "text", "text", "done"]
    assert events[1] == {"event": "prefill", "done": 2, "total": 2, "cached": 0}
    assert "".join(event["text"] for event in events[2:4]) == events[4]["text"] == "one two"
    assert events[4]["truncated"] is True
    assert events[0]["seed"] == events[4]["seed"]


def test_several_replies_have_different_seeds(tmp_path: Path) -> None:
    arguments = ("-p", "hi", "-n", "3", "--seed", "5", "--temp", "1")
    result = call(*arguments, models=tmp_path, replies=["a", "b", "c"])
    assert result.stdout == b"a\n\nb\n\nc\n"
    assert [line.rpartition(" ")[2] for line in result.stderr.decode().splitlines()] == ["5", "6", "7"]
    answers = json.loads(call(*arguments, "--json", models=tmp_path, replies=["a", "b", "c"]).stdout)["answers"]
    assert [(answer["text"], answer["seed"]) for answer in answers] == [("a", 5), ("b", 6), ("c", 7)]
    last = ("-p", "hi", "-n", "2", "--seed", str(MAX_SEED), "--json")
    answers = json.loads(call(*last, models=tmp_path).stdout)["answers"]
    assert [answer["seed"] for answer in answers] == [MAX_SEED, 0]


def test_a_seed_is_chosen_and_shown_when_sampling(tmp_path: Path) -> None:
    lines = {call("-p", "hi", "--temp", "1", models=tmp_path).stderr.decode().split("seed ")[1] for _ in range(2)}
    assert len(lines) == 2
    assert all(line.strip().isdigit() for line in lines)


def test_a_reply_that_reached_a_limit_says_so(tmp_path: Path) -> None:
    result = call("-p", "hi", "--max-tokens", "1", models=tmp_path, replies=["one two"])
    assert result.stderr.decode().splitlines()[0] == "qwchat: the reply was cut off at --max-tokens 1"
    result = call("-p", "hi", "--ctx", "3", models=tmp_path, replies=["one two"])
    assert result.stdout == b"one\n"
    assert result.stderr.decode().splitlines()[0] == (
        "qwchat: the reply was cut off: the context of 3 tokens is full; --ctx N allows a larger one"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("-p", " "), 2, 'the prompt is empty: ask a question, such as qwchat -p "What can you do?"'),
        ((), 2, 'the prompt is empty: ask a question, such as qwchat -p "What can you do?"'),
        (("-p", "hi", "--temp", "9"), 2, "--temp must be "),
        (("-p", "hi", "--temp", "nan"), 2, "--temp must be "),
        (("-p", "hi", "--temp", "warm"), 2, "--temp must be a number from 0 to 5, not 'warm'"),
        (("-p", "hi", "--top-p", "0"), 2, "--top-p must be "),
        (("-p", "hi", "--min-p", "-0.1"), 2, "--min-p must be "),
        (("-p", "hi", "--top-k", "-1"), 2, "--top-k must be "),
        (("-p", "hi", "--repeat-penalty", "0"), 2, "--repeat-penalty must be "),
        (("-p", "hi", "--presence-penalty", "3"), 2, "--presence-penalty must be "),
        (("-p", "hi", "--frequency-penalty", "-3"), 2, "--frequency-penalty must be "),
        (("-p", "hi", "-n", "65"), 2, "--count must be from 1 to 64, not 65"),
        (("-p", "hi", "--max-tokens", "0"), 2, "--max-tokens must be at least 1, not 0"),
        (("-p", "hi", "--seed", "-1"), 2, "--seed must be from 0 to 18446744073709551615, not -1"),
        (("-p", "hi", "--ctx", "0"), 2, "--ctx must be at least 1, not 0"),
        (("-p", "hi", "--threads", "0"), 2, "--threads must be from 1 to 256, not 0"),
        (("-p", "hi", "--stop", ""), 2, "--stop must be a non-empty string"),
        (("-p", "hi", "--kv", "f8"), 2, "--kv must be auto, f32 or q8, not 'f8'"),
        (
            ("-p", "hi", "--device", "tpu"),
            2,
            "--device must be auto, cpu, cuda, or cuda:N with the number of a GPU, not 'tpu'",
        ),
        (("-p", "hi", "--device", "cuda:"), 2, "--device must be auto, cpu, cuda, or cuda:N "),
        (("-p", "hi", "--gpu-layers", "-1"), 2, "--gpu-layers must be at least 0, not -1"),
        (
            ("-p", "hi", "--device", "cpu", "--gpu-layers", "4"),
            2,
            "--gpu-layers 4 needs a GPU: use --device auto or cuda",
        ),
        (("-p", "hi", "--json", "--jsonl"), 2, "--json and --jsonl exclude each other: choose one"),
        (("-p", "hi", "-f", "/nowhere/x"), 2, "cannot read /nowhere/x: No such file or directory"),
        (("-p", "hi", "-f", "/nowhere/*.x"), 2, "no file matches /nowhere/*.x"),
        (("-p", "-", "-f", "-"), 2, "-p - and -f - both read standard input: choose one"),
        (("chat", "-f", "-"), 2, "-f - works only with -p: in a chat, pipe the text in without -f"),
        (("-p", "hi", "-m", "mimi"), 3, "there is no model 'mimi': did you mean mini?"),
        (("-p", "hi", "-m", "./nowhere"), 3, "there is no file or folder ./nowhere: "),
        (("-p", "one two three", "--ctx", "4"), 4, "the prompt has 4 tokens and the context holds 4, "),
        (
            ("--tmep", "1"),
            2,
            "no such option: --tmep (Possible options: --help, --stop, --temp) (qwchat --help shows the options)",
        ),
        (("cnvert", "x"), 2, "there is no command 'cnvert': did you mean qwchat convert?"),
        (("hello",), 2, "there is no command 'hello': to ask the model, type qwchat -p \"hello\""),
        (("What is", "it?"), 2, "there is no command 'What is': to ask the model, type qwchat -p \"What is it?\""),
        (
            ("What?", "--temp", "0"),
            2,
            "there is no command 'What?': to ask the model, type qwchat -p \"What?\" --temp 0",
        ),
        (("$(rm x)",), 2, "there is no command '$(rm x)': to ask the model, type qwchat -p '$(rm x)'"),
        (("wow!",), 2, "there is no command 'wow!': to ask the model, type qwchat -p 'wow!'"),
        (("a" * 99,), 2, f"there is no command '{'a' * 80}…': to ask the model, type qwchat -p \"…\""),
        (
            ("hcat",),
            2,
            "there is no command 'hcat': did you mean qwchat chat, or qwchat -p \"hcat\" to ask the model?",
        ),
        (("",), 2, "there is no command '': qwchat --help lists the commands"),
        (("--no-speculate", "list"), 2, "put --no-speculate after the command: qwchat list …"),
        (("--temp", "1", "list"), 2, "put --temp after the command: qwchat list …"),
        (("chat", "mini", "-m", "other"), 2, "two models are given, mini and --model other: remove one"),
        (("chat", "--json"), 2, "--json works only with -p, not in a chat"),
        (("chat", "-n", "2"), 2, "--count works only with -p, not in a chat"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    result = call(*arguments, models=tmp_path)
    assert result.returncode == code, result.stderr
    assert result.stdout == b""
    [written] = result.stderr.decode().splitlines()
    assert written.startswith(f"qwchat: error: {line}")


def test_invalid_utf8_is_refused_with_its_position(tmp_path: Path) -> None:
    result = call("-p", "hi", models=tmp_path, stdin=b"abc\xff\xfe")
    assert result.returncode == 2
    assert result.stderr.decode() == (
        "qwchat: error: standard input is not UTF-8 text (byte 4 is 0xff): convert it, for example with iconv\n"
    )


def test_an_endless_pipe_is_refused(tmp_path: Path) -> None:
    command = f"yes | '{sys.executable}' '{FAKE}' -q -p hi"
    ran = subprocess.run(
        ["/bin/sh", "-c", command], env=environment(tmp_path), capture_output=True, timeout=PATIENCE_SECONDS
    )
    complaint = b"qwchat: error: standard input is larger than 8 MiB, the limit for a prompt: shorten it\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, b"", complaint)


def test_out_of_memory_is_code_5(tmp_path: Path) -> None:
    result = call("-p", "hi", models=tmp_path, load_error="MemoryError")
    assert result.returncode == 5
    assert result.stderr.decode().startswith("qwchat: error: out of memory: ")


def loader() -> Exception:
    """Return the error that llvmlite raises if its library does not fit in memory."""
    try:
        raise OSError("libLLVM.so: failed to map segment from shared object")
    except OSError:
        try:
            raise OSError("Could not find/load shared object file")
        except OSError as error:
            return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5),
        (ImportError("libopenblas.so: failed to map segment from shared object"), 5),
        (loader(), 5),
        (OSError(errno.EIO, "broken"), 1),
        (ImportError("No module named x"), 1),
    ],
)
def test_out_of_memory_errors_of_the_system_and_the_loader(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert run_guarded(fail, debug=False) == code
    assert ("out of memory: " in capsys.readouterr().err) is (code == 5)


def test_a_model_failure_is_code_3_and_keeps_the_session(tmp_path: Path) -> None:
    result = call("-p", "hi", models=tmp_path, replies=["one two three four"], failing=True)
    assert result.returncode == 3
    assert result.stdout == b"one two three\n"
    assert result.stderr == b"qwchat: error: the model produced NaN at token 4: convert it again\n"


def test_a_bug_shows_its_traceback_only_with_debug(tmp_path: Path) -> None:
    result = call("-p", "hi", models=tmp_path, load_error="ZeroDivisionError")
    assert result.returncode == 1
    assert result.stderr == (
        b"qwchat: error: internal error: ZeroDivisionError: as the script says (--debug shows the traceback)\n"
    )
    result = call("-p", "hi", "--debug", models=tmp_path, load_error="ZeroDivisionError")
    assert result.stderr.startswith(b"Traceback (most recent call last):")


def test_requested_colour_passes_through_a_pipe(tmp_path: Path) -> None:
    arguments = ("-p", "hi", "--render", "markdown", "--color", "always")
    result = call(*arguments, models=tmp_path, replies=["# Title\n`code` and **bold** \x1b[5m"])
    assert result.stdout.decode() == "\x1b[1;4mTitle\x1b[0m\n\x1b[36mcode\x1b[0m and \x1b[1mbold\x1b[0m ␛[5m\n"
