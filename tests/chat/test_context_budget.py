"""The context budget: used tokens, and freeing tokens by dropping or summarising exchanges."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial

import pytest

from qwchat.chat import context_budget
from qwchat.chat.context_budget import ContextFullError, ContextMeter, ContextReduction, reserved_for_reply, short_count
from qwchat.chat.overflow import OverflowHandler
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.reply_stream import StartReply
from qwchat.chat.session import PendingReply, Session
from qwchat.chat.view.screen import Screen
from qwchat.conversation.tree import Event, Tree
from qwchat.errors import PromptTooLongError, TemplateError, UsageError
from qwchat.events import Done
from qwchat.markdown.styles import PLAIN
from qwchat.request import Prompt, SamplingParams
from tests.chat.fakes import FakeModel

CONTROLS = ReplySettings(SamplingParams(), seed=1)


class Conversation:
    """A conversation with a scripted model under an overflow policy, with the user's answers and what the user sees."""

    def __init__(
        self, policy: str = "ask", answers: str = "", size: int = 40, system: str | None = None, **script: object
    ) -> None:
        self.events: list[Event] = []
        self.model = FakeModel(context_size=size, **script)  # type: ignore[arg-type]
        tree = Tree(self.events.append)
        self.session = Session(self.model, CONTROLS.changed("overflow", policy, CONTROLS), system, tree=tree)
        self.stderr = io.StringIO()
        self.answers = list(answers)
        self.prompts: list[str] = []
        self.reductions: list[ContextReduction] = []
        self.shown: list[bool] = []
        screen = Screen(self.stderr, PLAIN, quiet=True)
        self.overflow = OverflowHandler(self.session, screen, self.ask if answers else None, self.reductions.append)

    def ask(self, sign: str) -> str:
        self.prompts.append(sign)
        answer = self.answers.pop(0)
        if answer == "^":
            raise KeyboardInterrupt
        return answer.strip("-")

    def play(self, begin: StartReply, *, shown: bool = True) -> Done:
        self.shown.append(shown)
        done = list(begin(lambda: False))[-1]
        assert isinstance(done, Done)
        return done

    def say(self, text: str) -> Done | None:
        return self.answer(self.session.ask(text))

    def resume(self) -> Done | None:
        return self.answer(self.session.continue_reply())

    def answer(self, reply: PendingReply) -> Done | None:
        prompt = self.overflow.fit(reply, self.session.prompt(reply), partial(self.play, shown=False))
        return None if prompt is None else self.play(partial(self.session.stream, reply, prompt))

    @property
    def sent(self) -> list[str]:
        return [message["content"] for message in self.model.asked[-1]]

    @property
    def lines(self) -> list[str]:
        return self.stderr.getvalue().splitlines()


def four_exchanges(policy: str, answers: str = "", **more: object) -> Conversation:
    """Return a conversation of four exchanges of 2 + 5 tokens: 28 of 40 used, 5 reserved for the reply."""
    conversation = Conversation(policy, answers, replies=["one two three four"], **more)  # type: ignore[arg-type]
    for name in "abcd":
        conversation.say(name)
    return conversation


LONG = " ".join("e" * 7)  # 8 tokens: 36 of 40, leaving 4.
TOO_LONG = " ".join("e" * 12)  # 13 tokens: 41 of 40.


def test_tokens_reserved_for_a_reply() -> None:
    assert reserved_for_reply(4096, None) == 512
    assert reserved_for_reply(32_768, None) == 512
    assert reserved_for_reply(2048, None) == 256
    assert reserved_for_reply(2048, 20) == 20
    assert reserved_for_reply(3, None) == 1


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (1933, "1.9k"), (4096, "4.1k"), (32_768, "32.8k"), (131_072, "131k")],
)
def test_short_token_counts(tokens: int, text: str) -> None:
    assert short_count(tokens) == text


def test_the_meter_counts_the_tokens_before_the_next_message() -> None:
    conversation = Conversation(size=2000, replies=["one two three"], system="Be brief.")
    meter = ContextMeter(conversation.session)
    assert meter() == "ctx 3/2k"
    conversation.say("hello")
    assert meter() == "ctx 9/2k"
    asked = len(conversation.model.calls)
    assert meter() == "ctx 9/2k"
    conversation.session.undo()
    assert meter() == "ctx 3/2k"
    conversation.session.redo()
    conversation.session.system = None
    assert meter() == "ctx 6/2k"
    assert len(conversation.model.calls) == asked


def test_the_meter_is_empty_if_the_template_rejects_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(system="Be brief.")

    def refuse(*unused: object) -> int:
        raise TemplateError("no system prompts here")

    monkeypatch.setattr(conversation.model, "count", refuse)
    assert ContextMeter(conversation.session)() == ""


def test_drop_drops_the_oldest_exchanges_but_not_the_system_prompt() -> None:
    conversation = four_exchanges("drop", system="Be brief.", size=43)
    done = conversation.say(TOO_LONG)
    assert done is not None
    assert conversation.sent == ["Be brief.", "c", "one two three four", "d", "one two three four", TOO_LONG]
    assert conversation.lines == ["── dropped the 2 oldest exchanges; context 30/43 ──"]
    assert conversation.reductions == [ContextReduction("dropped", 2, 4, 30, 43)]
    assert {"dropped": [1, 2, 3, 4]} in conversation.events
    assert [node.content for node in conversation.session.tree.path()][:2] == ["a", "one two three four"], (
        "nothing is lost"
    )
    assert len([node for node in conversation.session.tree.nodes if node.content == TOO_LONG]) == 1


def test_a_resumed_session_knows_what_is_not_sent() -> None:
    conversation = four_exchanges("drop")
    conversation.say(TOO_LONG)
    again = Session(FakeModel(context_size=40), CONTROLS, tree=Tree.replay(conversation.events))
    assert [message["content"] for message in again.messages][:1] == ["c"]
    assert context_budget.unsent_counts(again, again.end) == {"dropped": 4, "summarised": 0}


def test_dropping_frees_tokens_for_more_than_one_message() -> None:
    conversation = four_exchanges("drop", size=120)
    for _ in range(20):
        conversation.say("e")
    assert 1 < len(conversation.reductions) < 7
    assert all(82 < reduction.tokens <= 90 for reduction in conversation.reductions), (
        "a quarter of 120 is free, and no more than that"
    )


def test_dropping_again_keeps_what_was_dropped_before() -> None:
    conversation = four_exchanges("drop")
    for _ in range(4):
        conversation.say(LONG)
    assert len(conversation.reductions) > 1
    dropped = conversation.session.tree.dropped()
    assert dropped == set(range(1, len(dropped) + 1)), "the oldest, without a gap"
    assert conversation.reductions[-1].turns == len(dropped)


def test_error_refuses_only_prompts_that_do_not_fit() -> None:
    conversation = four_exchanges("error")
    assert conversation.say(LONG) is not None
    conversation.session.undo()
    with pytest.raises(ContextFullError) as caught:
        conversation.say(TOO_LONG)
    assert str(caught.value) == (
        "the conversation with this message has 41 tokens and the context holds 40, including one for the reply: "
        "drop old turns, or use a longer context (up to 4,096 tokens)"
    )
    assert isinstance(caught.value, PromptTooLongError)
    assert conversation.lines == []


def test_ask_means_error_without_a_user() -> None:
    conversation = four_exchanges("ask")
    assert conversation.overflow.policy == "error"
    with pytest.raises(ContextFullError):
        conversation.say(TOO_LONG)


def test_a_message_too_long_by_itself_is_refused_under_every_policy() -> None:
    for policy in ("ask", "error", "drop", "summarise"):
        conversation = four_exchanges(policy, "x")
        with pytest.raises(PromptTooLongError) as caught:
            conversation.say(" ".join("e" * 60))
        assert str(caught.value).startswith("the prompt has 61 tokens and the context holds 40, "), policy
        assert conversation.session.tree.dropped() == set()
        assert len(conversation.model.calls) == 4


def test_the_user_is_asked_and_may_drop() -> None:
    conversation = four_exchanges("ask", "xd")
    assert conversation.say(TOO_LONG) is not None
    assert conversation.lines == [
        "the prompt has 41 tokens and the context holds 40: [d]rop the 2 oldest exchanges, [s]ummarise, "
        "[e]dit the message",
        "── dropped the 2 oldest exchanges; context 27/40 ──",
    ]
    assert conversation.prompts == ["d/s/e: ", "d/s/e: "], "an invalid answer is asked again"


def test_the_user_may_answer_anyway_if_the_prompt_fits() -> None:
    conversation = four_exchanges("ask", "a")
    assert conversation.say(LONG) is not None
    assert conversation.lines == [
        "the prompt has 36 tokens, leaving 4 of 40 for the reply: [d]rop the oldest exchange, [s]ummarise, "
        "[a]nswer anyway, [e]dit the message"
    ]
    assert conversation.prompts == ["d/s/a/e: "]
    assert len(conversation.sent) == 9


@pytest.mark.parametrize("answer", ["e", "-", "^"])
def test_the_user_may_go_back_to_the_message(answer: str) -> None:
    conversation = four_exchanges("ask", answer)
    assert conversation.say(TOO_LONG) is None
    assert len(conversation.model.calls) == 4
    assert [message["content"] for message in conversation.session.messages][-1] == "one two three four"


LONGER = " ".join("e" * 60)
SUMMARY = "Summary of the earlier conversation:\n\nLetters came."


def twenty_exchanges(summary: str) -> Conversation:
    """Return a conversation of 20 exchanges of 7 tokens: 140 of 200 used, 25 reserved; `summary` and a reply follow."""
    conversation = Conversation("summarise", replies=["one two three four"], size=200)
    for _ in range(20):
        conversation.say("a")
    conversation.model.replies = [summary, "Fine."]
    conversation.model._begun = 0
    return conversation


def test_a_refused_message_does_not_become_an_alternative() -> None:
    conversation = four_exchanges("error", size=41)
    with pytest.raises(ContextFullError):
        conversation.say(TOO_LONG)
    with pytest.raises(ContextFullError):
        conversation.say(TOO_LONG)
    assert conversation.say("short") is not None
    assert [node.content for node in conversation.session.tree.siblings(conversation.session.question().id)] == [
        "short"
    ]
    with pytest.raises(UsageError, match="there are no alternatives yet"):
        conversation.session.alternatives()


def test_summarise_replaces_the_oldest_turns_with_a_summary() -> None:
    conversation = twenty_exchanges("Letters came.")
    assert conversation.say(LONGER) is not None
    asked = conversation.model.asked[-2]
    assert asked[0] == {"role": "user", "content": "a"}
    assert asked[-1]["content"].startswith("Summarise our conversation so far in at most 12 words")
    assert asked[-2]["role"] == "assistant"
    assert conversation.model.calls[-2]["max_tokens"] == 25
    assert conversation.sent[0] == SUMMARY
    assert conversation.sent[-1] == LONGER
    assert conversation.reductions == [ContextReduction("summarised", 11, 22, 132, 200)]
    assert conversation.lines == ["── summarised the 11 oldest exchanges; context 132/200 ──"]
    assert conversation.shown[-3:] == [True, False, True], "the summary is not the reply"
    assert {"dropped": list(range(1, 23)), "summary": SUMMARY} in conversation.events
    assert context_budget.unsent_counts(conversation.session, conversation.session.end) == {
        "dropped": 0,
        "summarised": 22,
    }


def test_an_empty_summary_changes_nothing() -> None:
    conversation = twenty_exchanges(" ")
    with pytest.raises(UsageError, match="no summary was generated, so nothing was dropped"):
        conversation.say(LONGER)
    assert conversation.session.tree.dropped() == set()


def test_turns_that_fill_the_context_are_not_summarised() -> None:
    conversation = four_exchanges("summarise")
    with pytest.raises(PromptTooLongError, match="so they cannot be summarised: drop them"):
        conversation.say(TOO_LONG)


def test_an_earlier_summary_is_kept_when_more_is_dropped() -> None:
    conversation = four_exchanges("drop", size=100)
    conversation.model.replies = ["Short."]
    list(context_budget.summarise(conversation.session, conversation.session.end, 1, None))
    assert conversation.session.messages[0]["content"] == "Summary of the earlier conversation:\n\nShort."
    assert context_budget.drop(conversation.session, conversation.session.end, 1) == 1
    assert len(conversation.session.tree.dropped()) == 4
    assert conversation.session.messages[0]["content"].endswith("Short.")
    context_budget.send_all(conversation.session)
    assert len(conversation.session.messages) == 8


def test_a_reply_that_filled_the_context_continues_after_dropping() -> None:
    conversation = four_exchanges("drop", size=60)
    conversation.model.replies = [" ".join(f"w{number}" for number in range(40))]
    conversation.model._begun = 0
    done = conversation.say("count")
    assert done is not None
    assert done.finish_reason == "context"
    said = done.text
    done = conversation.resume()
    assert done is not None
    assert done.text.startswith(said)
    assert done.text.endswith("w39")
    assert done.finish_reason == "stop"
    assert conversation.reductions[0].exchanges == 3
    assert conversation.sent == ["d", "one two three four", "count", said]
    assert conversation.model.calls[-1]["continuing"] is True


def test_a_retry_is_checked_like_a_first_answer() -> None:
    conversation = four_exchanges("error")
    conversation.say(LONG)
    conversation.model.context_size = 36
    conversation.session.reply_settings = conversation.session.reply_settings.changed("overflow", "drop", CONTROLS)
    assert conversation.answer(conversation.session.retry()) is not None
    assert conversation.reductions[0].exchanges == 2
    assert conversation.sent[-1] == LONG
    assert len(conversation.session.tree.siblings(conversation.session.reply().id)) == 2


def test_exchanges_that_can_be_dropped() -> None:
    conversation = Conversation(replies=["one"])
    with pytest.raises(UsageError, match="there are no exchanges before the last one: /clear removes"):
        context_budget.drop(conversation.session, conversation.session.end, 1)
    conversation.say("a")
    with pytest.raises(UsageError, match="there are no exchanges before the last one: /clear removes"):
        context_budget.drop(conversation.session, conversation.session.end)
    conversation.say("b")
    with pytest.raises(UsageError, match="only exchanges before the last one can be dropped: there is 1"):
        context_budget.drop(conversation.session, conversation.session.end, 2)
    assert context_budget.drop(conversation.session, conversation.session.end) == 1
    assert context_budget.measure_reduction(
        "dropped", conversation.session, conversation.session.end, 1, Prompt(range(4))
    ).marker() == ("── dropped the oldest exchange; context 4/40 ──")


def test_a_short_reply_reserves_few_tokens() -> None:
    conversation = four_exchanges("ask", "x")
    conversation.session.reply_settings = replace(conversation.session.reply_settings, max_tokens=3)
    assert conversation.say(LONG) is not None
    assert conversation.prompts == []
