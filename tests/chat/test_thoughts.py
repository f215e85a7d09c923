"""Conversations with a reasoning model: what is kept, continued and shown of its thoughts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from itertools import islice

import pytest

from qwchat.chat import context_budget
from qwchat.chat.commands import CommandContext, Outcome, Show, parse, suggestions
from qwchat.chat.recap import last_exchange
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import PendingReply, Session
from qwchat.chat.view.reply import ReplyView
from qwchat.conversation.reply_parts import is_unfinished_thought, reply_parts
from qwchat.conversation.tree import Node, Tree
from qwchat.errors import UsageError
from qwchat.events import Done, TextStep
from qwchat.markdown.styles import PLAIN
from qwchat.messages import Message
from qwchat.reasoning import ReasoningStart, ReplyParts
from qwchat.request import PromptOptions, SamplingParams
from tests.chat.fakes import FakeModel, FakePrompt, replying

RAW = {
    "none": "Yes it is true",
    "open": "I think so\n</think>\n\nYes it is true",
    "optional": "<think>\nI think so\n</think>\n\nYes it is true",
}
STARTS: list[ReasoningStart] = ["open", "optional"]


def session_with(start: ReasoningStart, replies: Sequence[str] = (), **settings: object) -> Session:
    model = FakeModel(replies or [RAW[start]], reasoning=start)
    return Session(model, ReplySettings(SamplingParams(), seed=1, **settings))  # type: ignore[arg-type]


def answer(session: Session, reply: PendingReply, tokens: int | None = None) -> Done | None:
    """Stream a reply; with `tokens`, drop the stream after so many."""
    if tokens is None:
        return list(replying(session, reply))[-1]  # type: ignore[return-value]
    stream = replying(session, reply)
    steps = (event for event in stream if isinstance(event, TextStep))
    list(islice(steps, tokens))
    stream.close()  # type: ignore[attr-defined]
    return None


@pytest.mark.parametrize("start", STARTS)
def test_the_conversation_keeps_the_text_as_the_model_wrote_it(start: ReasoningStart) -> None:
    session = session_with(start)
    done = answer(session, session.ask("true?"))
    assert done is not None
    assert (done.reasoning, done.text) == ("I think so", "Yes it is true")
    node = session.reply()
    assert node.content == RAW[start]
    assert node.token_ids == done.token_ids
    assert reply_parts(node) == ReplyParts("I think so", "Yes it is true")
    restored = Tree.replay(json.loads(json.dumps(list(session.tree.events()))))
    assert reply_parts(restored.path()[-1]) == reply_parts(node)
    assert session.messages[-1]["content"] == RAW[start]


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("start", STARTS)
def test_a_reply_stopped_anywhere_continues_with_the_right_parts(start: ReasoningStart, dropped: bool) -> None:
    whole = answer(session := session_with(start), session.ask("true?"))
    assert whole is not None
    words = len(whole.token_ids)
    for cut in range(1, words):
        session = session_with(start)
        if dropped:
            answer(session, session.ask("true?"), cut)
        else:
            session.reply_settings = ReplySettings(SamplingParams(), seed=1, max_tokens=cut)
            answer(session, session.ask("true?"))
            session.reply_settings = ReplySettings(SamplingParams(), seed=1)
        node = session.reply()
        assert node.token_ids is not None
        assert len(node.token_ids) == cut
        thought, said = reply_parts(node)
        assert "I think so".startswith(thought)
        assert "Yes it is true".startswith(said)
        assert not said or thought == "I think so"
        end = answer(session, session.continue_reply())
        assert end is not None
        assert (end.reasoning, end.text, end.token_ids) == (whole.reasoning, whole.text, whole.token_ids)
        assert reply_parts(session.reply()) == reply_parts(session.reply())
        assert session.reply().content == RAW[start]
        assert (session.reply().stats or {})["reasoning_tokens"] == whole.stats.reasoning_tokens


def test_a_dropped_stream_is_cut_at_a_stop_string_of_its_answer() -> None:
    session = session_with("open", stop=("true", "think"))
    answer(session, session.ask("true?"), 10)
    assert session.reply().content == "I think so\n</think>\n\nYes it is "


def test_without_thinking_the_prompt_asks_for_an_answer() -> None:
    session = session_with("optional", ["Yes"])
    session.thinking = False
    done = answer(session, session.ask("true?"))
    assert done is not None
    assert (done.text, done.raw_text) == ("Yes", None)
    assert reply_parts(session.reply()) == ReplyParts("", "Yes")


def test_a_thought_is_continued_as_one_although_thinking_was_turned_off() -> None:
    session = session_with("optional")
    answer(session, session.ask("true?"), 3)
    session.thinking = False
    end = answer(session, session.continue_reply())
    assert end is not None
    assert (end.reasoning, end.text) == ("I think so", "Yes it is true")


def test_an_edited_reply_keeps_its_thought_apart() -> None:
    session = session_with("open")
    answer(session, session.ask("true?"))
    session.edit_reply(1, "I doubt it\n</think>\n\nNo")
    assert reply_parts(session.reply()) == ReplyParts("I doubt it", "No")
    session.edit_reply(1, "No")
    assert reply_parts(session.reply()) == ReplyParts("", "No")


@pytest.mark.parametrize("tokens", [None, 0, -1, "2", 1.5, True])
def test_a_reply_whose_figures_name_no_thought_is_text(tokens: object) -> None:
    node = Node(1, None, "assistant", "<think>a</think>b", stats={"reasoning_tokens": tokens})
    assert reply_parts(node).thought == ("a" if tokens is True else "")


def test_prompts_are_rendered_with_the_setting() -> None:
    asked: list[bool] = []

    class Recording(FakeModel):
        def prompt(
            self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
        ) -> FakePrompt:
            assert options is not None
            asked.append(options.thinking)
            return super().prompt(messages, continuing=continuing, options=options)

    session = Session(Recording(["Yes"], reasoning="optional"), ReplySettings(SamplingParams()))
    ask: Callable[[], Done | None] = lambda: answer(session, session.ask("true?"))  # noqa: E731
    ask()
    session.thinking = False
    ask()
    assert asked == [True, False]


def test_commands_use_the_answer_and_raw_shows_all() -> None:
    session = session_with("open", ["```\na\n```\n</think>\n\nYes\n\n```\nb\n```", "No thought </think>No", "Hm"])
    answer(session, session.ask("true?"))
    context = CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))
    assert run_command(context, "/think") == Show(message="```\na\n```")
    assert run_command(context, "/raw") == Show(message=session.reply().content)
    assert [each.text for each in suggestions(context, "/copy code ")] == ["code 1"]
    assert [each.text for each in suggestions(context, "/think s")] == ["show"]
    with pytest.raises(UsageError, match="think cannot be changed in a chat: start qwchat with --think"):
        run_command(context, "/think show")
    answer(session, session.retry())
    shown = run_command(context, "/alt")
    assert isinstance(shown, Show)
    assert shown.message == "Yes\n\n```\nb\n```"
    answer(session, session.retry())
    assert is_unfinished_thought(session.reply())
    assert last_exchange(session.tree) == ("> true?", None)
    run_command(context, "/alt")
    assert run_command(context, "/alt prev") == Show("reply 3 of 3", as_reply=False)
    session.tree.select(None)
    with pytest.raises(UsageError, match="there is no reply left"):
        run_command(context, "/think")


def test_a_reply_without_a_thought_has_none_to_show() -> None:
    session = session_with("none", ["<think>a</think>b"])
    answer(session, session.ask("true?"))
    context = CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))
    with pytest.raises(UsageError, match="the last reply has no thought"):
        run_command(context, "/think")
    assert last_exchange(session.tree) == ("> true?", "<think>a</think>b")


def run_command(context: CommandContext, text: str) -> Outcome:
    command = parse(text)
    assert command is not None
    return command[0].run(context, command[1])


def test_a_summary_is_the_answer_alone() -> None:
    thought = " ".join(["hmm"] * 300)
    model = FakeModel(["one", "two", f"{thought}\n</think>\n\nIn short"], reasoning="open", context_size=4096)
    session = Session(model, ReplySettings(SamplingParams(), seed=1))
    for question in ("a", "b"):
        answer(session, session.ask(question))
    assert list(context_budget.summarise(session, session.end, 1, None))
    assert model.calls[-1]["max_tokens"] is None
    assert session.tree.drops[0].summary == "Summary of the earlier conversation:\n\nIn short"
