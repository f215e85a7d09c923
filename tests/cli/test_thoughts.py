"""Replies of reasoning models on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runs import call

REPLY = "<think>\nI think so\n</think>\n\nYes it is"
SCRIPTS: list[dict[str, Any]] = [
    {"replies": [REPLY], "reasoning": "optional"},
    {"replies": [REPLY.removeprefix("<think>")], "reasoning": "open"},
]
PERFORMANCE = "0.12 s to first token · 2 prompt tokens · prefill 4.0 tok/s · decode"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("mode", [None, "fold", "hide", "show"])
def test_stdout_gets_the_answer_alone(tmp_path: Path, script: dict[str, Any], mode: str | None) -> None:
    extra = () if mode is None else ("--think", mode)
    result = call("-p", "hi", *extra, models=tmp_path, **script)
    assert result.stdout == b"Yes it is\n"
    errors = result.stderr.decode()
    assert errors.startswith("I think so\n" + PERFORMANCE if mode == "show" else PERFORMANCE)


def test_off_asks_for_no_thought(tmp_path: Path) -> None:
    result = call("-p", "hi", "--think", "off", "--json", models=tmp_path, replies=["Yes"], reasoning="optional")
    assert "reasoning" not in json.loads(result.stdout)
    result = call("-p", "hi", "--think", "off", models=tmp_path, **SCRIPTS[1])
    assert (result.stdout, result.stderr.decode()[: len(PERFORMANCE)]) == (b"Yes it is\n", PERFORMANCE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_json_has_the_thought_apart(tmp_path: Path, script: dict[str, Any]) -> None:
    answer = json.loads(call("-p", "hi", "--json", "--think", "show", models=tmp_path, **script).stdout)
    assert (answer["reasoning"], answer["text"]) == ("I think so", "Yes it is")
    assert answer["tokens"]["reasoning"] == answer["tokens"]["generated"] - 3
    lines = [json.loads(line) for line in call("-p", "hi", "--jsonl", models=tmp_path, **script).stdout.splitlines()]
    texts = [line for line in lines if line["event"] == "text"]
    assert "".join(line["text"] for line in texts if line.get("reasoning")) == "I think so"
    assert "".join(line["text"] for line in texts if "reasoning" not in line) == "Yes it is"
    assert lines[-1]["reasoning"] == "I think so"


@pytest.mark.parametrize("script", SCRIPTS)
def test_json_says_that_the_budget_closed_the_thought(tmp_path: Path, script: dict[str, Any]) -> None:
    answer = json.loads(call("-p", "hi", "--json", "--think-budget", "2", models=tmp_path, **script).stdout)
    assert (answer["reasoning"], answer["text"], answer["reasoning_truncated"]) == ("I think", "Yes it is", True)
    assert answer["settings"]["think_budget"] == 2
    assert answer["finish_reason"] == "stop"
    answer = json.loads(call("-p", "hi", "--json", "--think-budget", "9", models=tmp_path, **script).stdout)
    assert (answer["reasoning"], answer["reasoning_truncated"]) == ("I think so", False)


def test_a_budget_for_a_model_without_thoughts_is_ignored_with_a_word(tmp_path: Path) -> None:
    result = call("-p", "hi", "--think-budget", "2", models=tmp_path, replies=["Yes it is"])
    assert result.stdout == b"Yes it is\n"
    assert result.stderr.decode().startswith("qwchat: mini does not think, so --think-budget has no effect\n")
    for given in ("0", "-1"):
        result = call("-p", "hi", "--think-budget", given, models=tmp_path, replies=["Yes it is"])
        assert b"does not think" not in result.stderr
    assert result.returncode == 2
    assert b"--think-budget must be at least 0, not -1" in result.stderr


def test_json_of_other_models_does_not_mention_thoughts(tmp_path: Path) -> None:
    answer = json.loads(call("-p", "hi", "--json", models=tmp_path, replies=[REPLY]).stdout)
    assert answer["text"] == REPLY
    assert "reasoning" not in answer
    assert "reasoning" not in answer["tokens"]


def test_a_thought_that_is_cut_off_is_named(tmp_path: Path) -> None:
    result = call("-p", "hi", "--max-tokens", "2", models=tmp_path, **SCRIPTS[1])
    assert result.stdout == b"\n"
    assert "qwchat: the reply was cut off while thinking, at --max-tokens 2\n" in result.stderr.decode()


def test_a_thought_without_an_answer_is_named(tmp_path: Path) -> None:
    result = call("-p", "hi", models=tmp_path, replies=["I think so"], reasoning="open")
    assert result.stdout == b"\n"
    notice = "qwchat: the reply has a thought and no answer; --think show shows the thought\n"
    assert result.stderr.decode().startswith(notice)


def test_stop_strings_and_constraints_see_the_answer(tmp_path: Path) -> None:
    assert call("-p", "hi", "--stop", "think", "--stop", "is", models=tmp_path, **SCRIPTS[1]).stdout == b"Yes it \n"
    answer = call("-p", "hi", "--json", "--regex", "Yes .*", models=tmp_path, **SCRIPTS[0])
    assert json.loads(answer.stdout)["meets_constraint"] is True


def test_a_code_block_in_a_thought_is_not_extracted(tmp_path: Path) -> None:
    reply = "<think>\n```\nwrong\n```\n</think>\n\n```\nright\n```"
    assert call("-p", "hi", "-x", models=tmp_path, replies=[reply], reasoning="optional").stdout == b"right\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_saved_reply_is_exported_with_its_thought_apart(tmp_path: Path, script: dict[str, Any]) -> None:
    assert call("-p", "hi", "--session", "seas", models=tmp_path, **script).returncode == 0
    exported = {
        form: call("sessions", "export", "seas", "--format", form, models=tmp_path).stdout.decode()
        for form in ("md", "html", "json")
    }
    assert "> *Thought*\n>\n> I think so\n\nYes it is\n" in exported["md"]
    assert '<blockquote class="thought"><em>Thought</em>\n<div class="said">I think so</div>' in exported["html"]
    message = json.loads(exported["json"])["messages"][-1]
    assert (message["reasoning"], message["content"]) == ("I think so", "Yes it is")
