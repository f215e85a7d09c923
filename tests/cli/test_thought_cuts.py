"""Every way in which a thought may end, in every place where a reply is shown or kept: thought and answer are apart.

The replies come from the engine, on a tiny model that follows a script, with both kinds of templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quant.native.object_store import cache_root
from qwchat.conversation.reply_parts import reply_parts
from qwchat.conversation.session_store import SessionStore
from qwchat.events import Done, TextStep
from qwchat.reasoning import ReplyParts
from qwchat.request import SamplingParams
from tests.chat.pty import Terminal
from tests.cli.runs import call
from tests.thinking import OPENED, SWITCHED, load_scripted, make_thinking_model
from tests.tiers import some

THOUGHT, ANSWER = "one two\nhello 漢", "Yes, hello 漢\n\nand the end"
TEMPLATES = {"open": OPENED, "optional": SWITCHED}
OPENINGS = {"open": "", "optional": "<think>\n"}


@dataclass(frozen=True)
class Case:
    """A reply and its parts.

    Attributes:
        reply: what the model writes, after the opening tag.
        thought: the thought of the reply; None without one.
        answer: its answer.
        flags: options of the command line.
        reason: why the reply ends.
        truncated: whether the budget closed the thought.
        starts: the templates that this case is for.
        opened: whether the reply begins with the opening tag, where the template does not write it.
    """

    reply: str
    thought: str | None
    answer: str
    flags: tuple[str, ...] = ()
    reason: str = "stop"
    truncated: bool = False
    starts: tuple[str, ...] = ("open", "optional")
    opened: bool = True


WHOLE = f"{THOUGHT}\n</think>\n\n{ANSWER}"
CASES = {
    "whole": Case(WHOLE, THOUGHT, ANSWER),
    "budget": Case(WHOLE, "one two", ANSWER, ("--think-budget", "5"), truncated=True, starts=("open",)),
    "budget-after-tag": Case(WHOLE, "one tw", ANSWER, ("--think-budget", "5"), truncated=True, starts=("optional",)),
    "budget-and-constraint": Case(
        WHOLE, "on", ANSWER, ("--think-budget", "2", "--regex", "Yes(.|\n)*"), truncated=True, starts=("optional",)
    ),
    "budget-not-reached": Case(WHOLE, THOUGHT, ANSWER, ("--think-budget", "99")),
    "stop": Case(WHOLE, THOUGHT, "Yes, ", ("--stop", "hello", "--stop", "two")),
    "stop-at-once": Case(WHOLE, THOUGHT, "", ("--stop", "Yes")),
    "length-in-thought": Case(WHOLE, "one tw", "", ("--max-tokens", "4"), "length", starts=("open",)),
    "length-in-tag": Case(WHOLE, "", "", ("--max-tokens", "2"), "length", starts=("optional",)),
    "length-after-tag": Case("a\n</think>\n\nYes", "a", "", ("--max-tokens", "4"), "length", starts=("open",)),
    "length-in-answer": Case("a\n</think>\n\nYes", "a", "Y", ("--max-tokens", "6"), "length", starts=("open",)),
    "never-closed": Case(THOUGHT, THOUGHT, ""),
    "never-closed-but-begun": Case(f"{THOUGHT}\n</think", f"{THOUGHT}\n</think", ""),
    "empty": Case("\n</think>\n\nYes", "", "Yes"),
    "empty-at-once": Case("</think>Yes", "", "Yes"),
    "no-answer": Case(f"{THOUGHT}\n</think>\n\n", THOUGHT, ""),
    "tags-in-answer": Case("a</think>b <think> c", "a", "b <think> c"),
    "answer-alone": Case("Yes", None, "Yes", starts=("optional",), opened=False),
    "off": Case("Yes", None, "Yes", ("--think", "off"), starts=("optional",), opened=False),
    "variable": Case(
        "Yes", None, "Yes", ("--template-var", "enable_thinking=false"), starts=("optional",), opened=False
    ),
    "nothing": Case("", None, "", starts=("optional",), opened=False),
}
COMMAND_LINE_FLAGS = {"--regex", "--think", "--template-var"}
EACH = [(name, start) for name, case in CASES.items() for start in case.starts]


@pytest.fixture(scope="module", autouse=True)
def compiled_kernels() -> Iterator[None]:
    """Let the command line use the compiled kernels of all tests, although it has a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWCHAT_CACHE", str(cache_root()))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        start: str(make_thinking_model(tmp_path_factory.mktemp(start), template))
        for start, template in TEMPLATES.items()
    }


def script_of(case: Case, start: str, folders: dict[str, str]) -> dict[str, Any]:
    return {"path": folders[start], "reply": (OPENINGS[start] if case.opened else "") + case.reply}


@pytest.mark.parametrize(("name", "start"), some(EACH, 5))
def test_outputs_keep_thought_and_answer_apart(name: str, start: str, folders: dict[str, str], tmp_path: Path) -> None:
    case = CASES[name]
    options: dict[str, Any] = {"models": tmp_path, "scripted": script_of(case, start, folders)}
    given = ("-p", "hello", "--temp", "0", *case.flags)
    answer = json.loads(call(*given, "--json", **options).stdout)
    assert (answer.get("reasoning"), answer["text"], answer["finish_reason"]) == (
        case.thought, case.answer, case.reason
    )  # fmt: skip
    assert answer.get("reasoning_truncated") == (None if case.thought is None else case.truncated)
    assert ("reasoning" in answer["tokens"]) == (case.thought is not None)
    events = [json.loads(line) for line in call(*given, "--jsonl", **options).stdout.splitlines()]
    assert join(events, thought=True) == (case.thought or "")
    assert join(events, thought=False) == case.answer
    assert events[-1].get("reasoning") == case.thought
    plain = call(*given, **options)
    assert plain.stdout.decode() == case.answer + "\n"
    assert not case.thought or not plain.stderr.decode().startswith(case.thought)
    if "--think" not in case.flags:
        shown = call(*given, "--think", "show", **options)
        assert shown.stdout == plain.stdout
        assert shown.stderr.decode().startswith(f"{case.thought}\n" if case.thought else "")


def join(events: list[dict[str, Any]], *, thought: bool) -> str:
    texts = [event for event in events if event["event"] == "text"]
    return "".join(event["text"] for event in texts if event.get("reasoning", False) == thought)


@pytest.mark.parametrize(("name", "start"), some(EACH, 5))
def test_sessions_and_exports_keep_thought_and_answer_apart(
    name: str, start: str, folders: dict[str, str], tmp_path: Path
) -> None:
    case = CASES[name]
    options: dict[str, Any] = {"models": tmp_path, "scripted": script_of(case, start, folders)}
    call("-p", "hello", "--temp", "0", "--session", "kept", *case.flags, **options)
    store = SessionStore(tmp_path / "home" / "sessions")
    entry = store.named("kept")
    assert entry is not None
    node = store.read(entry.id).tree.path()[-1]
    assert reply_parts(node) == ReplyParts(case.thought or "", case.answer)
    exported = json.loads(call("sessions", "export", "kept", "--format", "json", **options).stdout)["messages"][-1]
    assert exported["content"] == case.answer
    assert exported.get("reasoning") == case.thought
    markdown = call("sessions", "export", "kept", "--format", "md", **options).stdout.decode()
    assert ("*Thought*" in markdown) == bool(case.thought)
    assert case.answer.strip() in markdown
    page = call("sessions", "export", "kept", "--format", "html", **options).stdout.decode()
    assert page.count('class="thought"') == bool(case.thought)
    again = call("-p", "hello", "--temp", "0", "--session", "kept", "--json", *case.flags, **options)
    assert json.loads(again.stdout)["text"] == case.answer


@pytest.mark.parametrize(
    ("name", "start"), [each for each in EACH if not COMMAND_LINE_FLAGS.intersection(CASES[each[0]].flags)]
)
def test_events_of_the_api_keep_thought_and_answer_apart(name: str, start: str, folders: dict[str, str]) -> None:
    case = CASES[name]
    flags = dict(zip(case.flags[::2], case.flags[1::2], strict=True))
    with load_scripted(**script_of(case, start, folders)) as model:
        events = list(
            model.chat(
                [{"role": "user", "content": "hello"}],
                settings=SamplingParams(),
                max_tokens=int(flags["--max-tokens"]) if "--max-tokens" in flags else None,
                stop=case.flags[1::2] if "--stop" in flags else (),
                think_budget=int(flags.get("--think-budget", 0)),
            )
        )
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.reasoning, done.text, done.finish_reason) == (case.thought or "", case.answer, case.reason)
    assert (done.raw_text is None) == (case.thought is None)
    assert done.reasoning_truncated == case.truncated
    steps = [event for event in events if isinstance(event, TextStep)]
    assert "".join(step.text for step in steps if step.reasoning) == done.reasoning
    assert "".join(step.text for step in steps if not step.reasoning) == done.text


@pytest.mark.parametrize(("name", "start"), some(EACH, 12))
def test_a_terminal_shows_the_answer_and_folds_the_thought(
    name: str, start: str, folders: dict[str, str], tmp_path: Path
) -> None:
    case = CASES[name]
    script = script_of(case, start, folders)
    flags = ("--render", "plain", "--stats", "off", *case.flags)
    with Terminal("-p", "hello", "--temp", "0", *flags, models=tmp_path, scripted=script) as terminal:
        assert terminal.end() == 0
        lines = terminal.text.split("\n")
    if case.thought:
        assert re.fullmatch(r"thought for \d+ s, \d+ tokens?", lines.pop(0))
    shown = "\n".join(lines)
    assert shown.startswith(case.answer.rstrip())
    assert not case.thought or f"{case.thought}\n" not in shown + "\n"
