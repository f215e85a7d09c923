"""Constrained replies: --choices, --regex, --json-schema, -x, --logprobs, and exit code 6."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwchat.cli.extract import code_blocks
from tests.cli.runs import call

SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
FIGURES = 1  # lines of stderr in every reply


def errors(result: object) -> list[str]:
    return result.stderr.decode().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("flags", "reply"),
    [
        (("--choices", "yes,no"), "no"),
        (("--choices", "yes", "--choices", r"no\, never"), "no, never"),
        (("--regex", r"\d+ (cats|dogs)"), "12 cats"),
        (("--json-schema", SCHEMA), '{"a":1}'),
        (("--json-schema", "{file}"), '{"a":2}'),
    ],
)
def test_a_reply_that_meets_its_constraint(tmp_path: Path, flags: tuple[str, ...], reply: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA)
    words = [word.format(file=file) if word == "{file}" else word for word in flags]
    result = call("-p", "hi", *words, models=tmp_path, replies=[reply])
    assert (result.stdout, result.returncode) == (reply.encode() + b"\n", 0)
    assert len(errors(result)) == FIGURES


def test_a_schema_is_read_from_a_pipe(tmp_path: Path) -> None:
    given = ("-p", "hi", "--json-schema", "-", "--json")
    answer = json.loads(call(*given, models=tmp_path, stdin=SCHEMA.encode(), replies=['{"a":1}']).stdout)
    assert answer["settings"]["json_schema"] == SCHEMA
    assert answer["meets_constraint"] is True
    for extra in (("-p", "-"), ("-p", "hi", "-f", "-")):
        result = call(*extra, "--json-schema", "-", models=tmp_path, stdin=SCHEMA.encode())
        assert result.returncode == 2
        assert errors(result) == [
            "qwchat: error: --json-schema - reads standard input, and so do -p - and -f -: choose one"
        ]
    result = call(*given, models=tmp_path, stdin=b"a.json")
    assert errors(result) == ["qwchat: error: standard input is not a JSON schema, which begins with {: pipe one in"]


@pytest.mark.parametrize(
    ("flags", "reply", "line"),
    [
        (
            ("--choices", "yes,no", "--max-tokens", "1"),
            "one two",
            "--choices: it was cut off at --max-tokens 1; allow more tokens",
        ),
        (
            ("--regex", "x+", "--ctx", "4"),
            "one two three",
            "--regex: the context of 4 tokens is full; --ctx N allows a larger one",
        ),
        (
            ("--json-schema", SCHEMA, "--stop", "}"),
            '{"a":1}',
            "--json-schema: a stop string ended it: leave --stop out",
        ),
    ],
)
def test_a_reply_that_fails_its_constraint_is_printed_and_gives_6(
    tmp_path: Path, flags: tuple[str, ...], reply: str, line: str
) -> None:
    result = call("-p", "hi", *flags, models=tmp_path, replies=[reply])
    assert result.stdout
    assert reply.encode().startswith(result.stdout.rstrip(b"\n"))
    assert result.returncode == 6
    assert errors(result)[-1] == f"qwchat: error: the reply does not meet {line}"
    answer = call("-p", "hi", *flags, "--json", models=tmp_path, replies=[reply])
    assert json.loads(answer.stdout)["meets_constraint"] is False
    assert (answer.returncode, errors(answer)) == (6, errors(result)[-1:])


def test_one_of_several_replies_fails_its_constraint(tmp_path: Path) -> None:
    given = ("-p", "hi", "-n", "3", "--choices", "a,b", "--stop", "c")
    result = call(*given, models=tmp_path, replies=["a", "c", "b"])
    assert result.stdout == b"a\n\n\n\nb\n"
    assert result.returncode == 6
    events = [
        json.loads(line)
        for line in call(*given, "--jsonl", models=tmp_path, replies=["a", "c", "b"]).stdout.splitlines()
    ]
    assert [event["meets_constraint"] for event in events if event["event"] == "done"] == [True, False, True]


def test_a_reply_that_was_forced_to_end_says_so(tmp_path: Path) -> None:
    result = call("-p", "hi", "--regex", "[a-z ]+", "--max-tokens", "1", models=tmp_path, replies=["one two"])
    assert result.returncode == 0
    assert errors(result)[0] == "qwchat: the reply was ended early to fit --max-tokens 1"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--choices", ""), "--choices: choices must not be empty: give some texts, as in --choices yes,no"),
        (("--regex", "x("), "--regex: the regular expression cannot be used: unclosed group (character 2)"),
        (
            ("--json-schema", '{"not": {}}'),
            "--json-schema: the JSON schema uses not at #, which cannot be guaranteed: remove it",
        ),
        (
            ("--json-schema", "nowhere.json"),
            "--json-schema: cannot read nowhere.json: No such file or directory (a schema begins with {)",
        ),
        (("--json-schema", "[]"), '--json-schema: the JSON schema must be an object, as in {"type": "object"}'),
        (("--choices", "a", "--regex", "b"), "--choices and --regex exclude each other: choose one"),
        (("--logprobs", "3"), "--logprobs needs --json or --jsonl"),
        (("--json", "--logprobs", "21"), "--logprobs must be from 1 to 20, not 21"),
        (("-x", "--extract-last"), "--extract and --extract-last exclude each other: choose one"),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_opened(
    tmp_path: Path, flags: tuple[str, ...], line: str
) -> None:
    result = call("-p", "hi", *flags, models=tmp_path)
    assert (result.returncode, errors(result)) == (2, [f"qwchat: error: {line}"])


@pytest.mark.parametrize("flag", [("-x",), ("--extract-last",), ("--logprobs", "3")])
def test_options_of_a_single_reply_are_refused_in_a_chat(tmp_path: Path, flag: tuple[str, ...]) -> None:
    result = call("chat", *flag, models=tmp_path)
    name = "--extract" if flag[0] == "-x" else flag[0]
    assert errors(result) == [f"qwchat: error: {name} works only with -p, not in a chat"]
    assert errors(call("chat", "--json-schema", "-", models=tmp_path)) == [
        "qwchat: error: --json-schema - works only with -p: in a chat, give the name of a file"
    ]


def test_a_flag_overrides_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_REGEX", "x+")
    asked = json.loads(call("-p", "hi", "--json", "--choices", "a", models=tmp_path, replies=["a"]).stdout)
    assert (asked["settings"]["choices"], asked["settings"]["regex"]) == (["a"], None)
    monkeypatch.setenv("QWCHAT_CHOICES", "a")
    assert errors(call("-p", "hi", models=tmp_path)) == [
        "qwchat: error: choices (QWCHAT_CHOICES) and regex (QWCHAT_REGEX) exclude each other: choose one"
    ]
    assert call("-p", "hi", "--regex", "none", "--choices", "b", models=tmp_path, replies=["b"]).returncode == 0


REPLY = "Try:\n\n```py\nx = 1\n\ny = 2\n```\n\n1. or\n\n   ~~~\n   z\n   ~~~\n"


@pytest.mark.parametrize(("flag", "block"), [("-x", b"x = 1\n\ny = 2\n"), ("--extract-last", b"z\n")])
def test_only_the_code_block_is_printed(tmp_path: Path, flag: str, block: bytes) -> None:
    result = call("-p", "hi", flag, models=tmp_path, replies=[REPLY])
    assert (result.stdout, result.returncode) == (block, 0)
    assert len(errors(result)) == FIGURES
    answer = json.loads(call("-p", "hi", flag, "--json", models=tmp_path, replies=[REPLY]).stdout)
    assert answer["text"] == REPLY
    assert answer["extracted"] == block.decode().rstrip("\n")


def test_no_code_block(tmp_path: Path) -> None:
    result = call("-p", "hi", "-x", models=tmp_path, replies=["just `words`"])
    assert (result.stdout, result.returncode) == (b"", 6)
    expected = "qwchat: error: the reply has no code block: ask for one, or omit -x to see the reply"
    assert errors(result)[-1] == expected
    answer = call("-p", "hi", "-x", "--json", models=tmp_path, replies=["just `words`"])
    assert (json.loads(answer.stdout)["extracted"], answer.returncode) == (None, 6)
    result = call("-p", "hi", "-x", "-n", "2", models=tmp_path, replies=["no", "```\nyes\n```"])
    assert (result.stdout, result.returncode) == (b"yes\n", 6)
    blocks = ["```\na\n```", "no", "```\nb\n```"]
    assert call("-p", "hi", "-x", "-n", "3", models=tmp_path, replies=blocks).stdout == b"a\n\nb\n"


def test_an_unclosed_block_is_complete_unless_the_reply_was_cut_off(tmp_path: Path) -> None:
    assert call("-p", "hi", "-x", models=tmp_path, replies=["```\nx = 1"]).returncode == 0
    result = call("-p", "hi", "-x", "--max-tokens", "3", models=tmp_path, replies=["```\nx = 1\n```"])
    assert result.stdout.startswith(b"x")
    assert result.returncode == 6
    assert errors(result)[-1] == "qwchat: error: the code block is incomplete: allow more tokens"


def test_code_blocks_follow_commonmark() -> None:
    text = "> ```\n> quoted\n> ```\n\n    indented\n\n````md\n```\ninner\n```\n````\n\n```\nopen"
    assert [(block.content, block.closed) for block in code_blocks(text)] == [
        ("quoted\n", True),
        ("```\ninner\n```\n", True),
        ("open", False),
    ]


def test_a_schema_file_is_read_up_to_the_size_limit(tmp_path: Path) -> None:
    result = call("-p", "hi", "--json-schema", "/dev/zero", models=tmp_path)
    assert errors(result) == ["qwchat: error: --json-schema: /dev/zero is larger than 1 MiB, the limit for a schema"]
    assert result.returncode == 2
    (tmp_path / "latin").write_bytes(b'{"title": "\xe9"}')
    result = call("-p", "hi", "--json-schema", str(tmp_path / "latin"), models=tmp_path)
    assert errors(result) == [f"qwchat: error: --json-schema: {tmp_path}/latin is not UTF-8 text"]
    result = call("-p", "hi", "--json-schema", "a\0b", models=tmp_path)
    assert errors(result)[0].startswith("qwchat: error: --json-schema: 'a\\x00b' is not a valid file name")


def test_log_probabilities_are_in_the_json_output(tmp_path: Path) -> None:
    top = [{"token_id": 0, "text": "t0", "logprob": -1.0}, {"token_id": 1, "text": "t1", "logprob": -2.0}]
    result = call("-p", "hi", "--json", "--logprobs", "2", models=tmp_path, replies=["one two"])
    found = json.loads(result.stdout)["logprobs"]
    assert [each["text"] for each in found] == ["one", " two"]
    assert all(each["logprob"] == -1.0 and each["top"] == top for each in found)
    lines = call("-p", "hi", "--jsonl", "--logprobs", "2", models=tmp_path, replies=["one two"]).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["logprobs"] for event in events if event["event"] == "text"] == events[-1]["logprobs"] == found
    assert "logprobs" not in json.loads(call("-p", "hi", "--json", models=tmp_path).stdout)


def test_code_between_html_tags_is_a_block_as_in_the_chat() -> None:
    text = "<answer>\n```py\nx = 1\n```\n</answer>\n"
    assert [block.content for block in code_blocks(text)] == ["x = 1\n"]
