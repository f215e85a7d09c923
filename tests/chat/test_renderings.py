"""The prompt of a reply is rendered once, whatever counts its tokens and whatever is attached."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import qwchat
from quant import convert
from qwchat.chat.commands import CommandContext
from qwchat.chat.editor.plain_reader import PlainReader
from qwchat.chat.loop import Chat
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.view.prefill_status import PrefillStatus
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.screen import Screen
from qwchat.markdown.styles import PLAIN
from qwchat.messages import Message
from qwchat.models_folder import embedded_checkpoint
from qwchat.request import PromptOptions, SamplingParams
from qwchat.text import prompts
from tests.chat.fakes import FakeModel, FakePrompt
from tests.cli.runs import call

EXCHANGES = ("a b", "c d", "e f")


def run_chat(model: FakeModel | qwchat.Model, lines: list[str], policy: str = "error") -> tuple[Chat, io.StringIO]:
    """Type `lines` into a chat by the line; return it, and what went to standard error."""
    stderr = io.StringIO()
    reply_settings = ReplySettings(SamplingParams(), max_tokens=4)
    session = Session(model, reply_settings.changed("overflow", policy, reply_settings))
    typed = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
    chat = Chat(
        context=CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN)),
        reader=PlainReader(typed, None),
        screen=Screen(stderr, PLAIN),
        status=PrefillStatus(stderr, PLAIN, enabled=False),
    )
    chat.run()
    return chat, stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    destination = tmp_path_factory.mktemp("renderings") / "mini"
    list(convert(embedded_checkpoint(), destination))
    with qwchat.load(destination, threads=1, context=512) as loaded:
        yield loaded


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each rendering of the real template had."""
    counts: list[int] = []
    encode = prompts.encode_chat

    def counting(tokenizer: object, template: object, messages: list[object], **options: object) -> list[int]:
        counts.append(len(messages))
        return encode(tokenizer, template, messages, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(prompts, "encode_chat", counting)
    return counts


def test_each_reply_of_a_chat_renders_its_prompt_once(model: qwchat.Model, rendered: list[int], tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("Planets are round.")
    chat, stderr = run_chat(
        model,
        ["Name a planet.", "/continue", f"Is it in @{tmp_path / 'note.md'}?", "/retry --temp 1", "/edit And a sea?"],
    )
    assert len(chat.context.session.tree.nodes) == 8, stderr.getvalue()
    # A message, the rest of its reply, a message with a file, another reply to it, an edited message.
    assert rendered == [1, 1, 3, 3, 3]
    assert (
        f"context {chat.context.session.tree.node(5).stats['prompt_tokens']}/512 with this message" in stderr.getvalue()
    )  # type: ignore[index]


def test_a_single_question_renders_its_prompt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[int] = []
    render = FakeModel.prompt

    def counting(self: FakeModel, messages: Sequence[Message], **options: bool) -> FakePrompt:
        prompts.append(len(messages))
        return render(self, messages, **options)

    monkeypatch.setattr(FakeModel, "prompt", counting)
    (tmp_path / "note.md").write_text("one two")
    assert call("-p", "hi", "-f", str(tmp_path / "note.md"), "-n", "2", models=tmp_path, replies=["a"]).returncode == 0
    assert prompts == [1, 1]


@pytest.mark.parametrize("policy", ["error", "drop", "summarise"])
def test_a_prompt_that_fits_is_not_rendered_again_under_any_policy(policy: str) -> None:
    model = FakeModel(["one two"], context_size=200)
    run_chat(model, list(EXCHANGES), policy)
    assert [len(messages) for messages in model.rendered] == [1, 3, 5]


def test_no_prompt_is_rendered_twice_when_old_turns_are_dropped() -> None:
    model = FakeModel(["one two"], context_size=24)
    chat, _ = run_chat(model, [*EXCHANGES, "g h i"], "drop")
    assert chat.context.session.tree.dropped() == {1, 2}
    assert [len(messages) for messages in model.rendered] == [1, 3, 5, 7, 3, 5], "all turns, then fewer of them"
    assert model.asked[-1] == model.rendered[-1] == chat.context.session.messages_to(7)


class Interrupted(FakeModel):
    """A Ctrl-C while a prompt is rendered."""

    def prompt(
        self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
    ) -> FakePrompt:
        signal.raise_signal(signal.SIGINT)
        return super().prompt(messages, continuing=continuing, options=options)


def test_a_stop_requested_while_the_prompt_is_rendered_stops_the_reply() -> None:
    chat, stderr = run_chat(Interrupted(["one two"]), ["hello"])
    assert "stopped; no tokens generated, /retry tries again" in stderr.getvalue()
    assert [node.content for node in chat.context.session.tree.nodes] == ["hello"]


def test_a_stop_during_rendering_ends_a_single_question_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = FakeModel.prompt

    def interrupted(self: FakeModel, messages: Sequence[Message], **options: bool) -> FakePrompt:
        signal.raise_signal(signal.SIGINT)
        return render(self, messages, **options)

    monkeypatch.setattr(FakeModel, "prompt", interrupted)
    result = call("-p", "hi", "--json", models=tmp_path, replies=["a"])
    assert (result.returncode, json.loads(result.stdout)["finish_reason"]) == (130, "cancelled")
