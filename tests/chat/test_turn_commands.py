"""Turn commands on the scripted model: undo, retry, edit, continue and alternatives."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.chat.commands import CommandContext, Draft, Outcome, Show, StreamReply, parse, suggestions
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.reply_stream import show_reply
from qwchat.chat.session import Session
from qwchat.chat.view.prefill_status import PrefillStatus
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.table import format_answer
from qwchat.conversation.tree import Event, Tree
from qwchat.errors import UsageError
from qwchat.events import Done, TextEvent, TextStep
from qwchat.markdown.styles import PLAIN
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying
from tests.tiers import count

HOT = ReplySettings(SamplingParams(temperature=0.7))


def make(*replies: str, reply_settings: ReplySettings = HOT, **script: object) -> tuple[FakeModel, CommandContext]:
    model = FakeModel(replies, **script)  # type: ignore[arg-type]
    session = Session(model, reply_settings, fingerprint="0123abcd")
    return model, CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))


def run_command(context: CommandContext, text: str) -> Outcome:
    command = parse(text)
    assert command is not None
    return command[0].run(context, command[1])


def shown(context: CommandContext, text: str) -> str:
    outcome = run_command(context, text)
    assert isinstance(outcome, Show)
    return "\n".join(part for part in (format_answer(outcome.table, outcome.text), outcome.message) if part)


def stream(context: CommandContext, text: str, stop_after: int | None = None) -> Done:
    """Type a message, or a command that streams a reply. `stop_after` cancels it after so many tokens."""
    command = parse(text)
    outcome = (
        StreamReply(partial(context.session.ask, text)) if command is None else command[0].run(context, command[1])
    )
    assert isinstance(outcome, StreamReply)
    steps: list[TextStep] = []
    session = context.session
    for event in replying(session, outcome.begin(), lambda: stop_after is not None and len(steps) >= stop_after):
        if isinstance(event, TextStep):
            steps.append(event)
        if isinstance(event, Done):
            return event
    raise AssertionError("the reply has no end")


def turn_texts(context: CommandContext) -> list[str]:
    return [message["content"] for message in context.session.messages]


def test_undo_and_redo_move_back_and_forth() -> None:
    _, context = make("One.", "Two.", "Three.")
    for question in ("first", "second", "third"):
        stream(context, question)
    assert shown(context, "/undo") == (
        "undid “third”; /redo restores it\nthe conversation now ends with the reply “Two.”"
    )
    assert shown(context, "/undo 2") == (
        "undid 2 messages, back to “first”; /redo restores them\nthe conversation is now empty"
    )
    assert turn_texts(context) == []
    for command, gone in (
        ("/undo", "there is nothing left to undo"),
        ("/undo 2", "there is nothing left to undo"),
        ("/retry", "there is no message left"),
        ("/edit --reply", "there is no reply left"),
        ("/continue", "there is nothing left to continue"),
    ):
        with pytest.raises(UsageError, match=f"^{gone}: /redo restores undone turns$"):
            run_command(context, command)
    assert shown(context, "/redo") == "restored 6 turns\nthe conversation now ends with the reply “Three.”"
    with pytest.raises(UsageError, match="there is nothing to redo"):
        run_command(context, "/redo")
    with pytest.raises(UsageError, match=r"there are only 3 messages \(4 counts back from the last one\)"):
        run_command(context, "/undo 4")
    for wrong in ("0", "-1", "x", "1.5", "９", "9" * 30):
        with pytest.raises(UsageError, match="/undo takes a number from 1, not "):
            run_command(context, f"/undo {wrong}")


def test_retry_keeps_the_old_reply_as_an_alternative() -> None:
    model, context = make("old", "new", "cold", reply_settings=replace(HOT, seed=5))
    stream(context, "question")
    stream(context, "/retry")
    assert turn_texts(context) == ["question", "new"]
    assert model.calls[0]["seed"] == 5
    assert model.calls[1]["seed"] != 5
    assert stream(context, "/retry --temp 0 --seed=5").seed == 5
    assert model.calls[2]["settings"] == SamplingParams()
    assert context.session.reply_settings.sampling.temperature == 0.7
    assert not context.session.last_settings.sampled
    assert shown(context, "/alt") == "reply 1 of 3\nold"
    assert shown(context, "/alt prev") == "reply 3 of 3\ncold"
    assert shown(context, "/alt 2") == "reply 2 of 3\nnew"
    assert turn_texts(context) == ["question", "new"]
    with pytest.raises(UsageError, match="there is no alternative 4: there are 3"):
        run_command(context, "/alt 4")


def test_a_retry_that_says_nothing_keeps_the_old_reply() -> None:
    _, context = make("old", "new")
    stream(context, "question")
    stream(context, "/retry", stop_after=0)
    assert turn_texts(context) == ["question", "old"]


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("/undo", "there is nothing to undo yet"),
        ("/retry", "there is no message yet"),
        ("/retry --temp", "/retry takes settings, for example /retry --temp 0.9 --seed 7, not '--temp'"),
        ("/retry hotter", "/retry takes settings, for example"),
        ("/retry --warmth 3", "there is no setting 'warmth'"),
        ("/retry --temp warm", "temp must be a number from 0 to 5, not 'warm'"),
        ("/retry --stop 'a", "cannot parse"),
        ("/continue", "there is nothing to continue yet"),
        ("/edit", "there is no message yet"),
        ("/edit --reply", "there is no reply yet"),
        ("/alt", "there are no alternatives yet: /retry and /edit create them"),
        ("/redo", "there is nothing to redo"),
    ],
)
def test_what_cannot_be_done(typed: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_command(make()[1], typed)
    assert complaint in str(caught.value)


def test_retry_at_temperature_0_warns_unless_it_is_raised() -> None:
    _, context = make("same", reply_settings=ReplySettings(SamplingParams()))
    stream(context, "question")
    plain, warm = run_command(context, "/retry"), run_command(context, "/retry --temp 0.8")
    assert isinstance(plain, StreamReply)
    assert isinstance(warm, StreamReply)
    assert plain.hint == "temp is 0, so the reply will be the same: try /retry --temp 0.7"
    assert warm.hint is None
    assert [s.text for s in suggestions(context, "/retry --pres")] == ["--presence-penalty"]


def test_an_edited_message_is_an_alternative_and_both_branches_are_kept() -> None:
    model, context = make("One.", "Two.", "Eins.")
    stream(context, "first")
    stream(context, "second")
    assert run_command(context, "/edit 2") == Draft("/edit 2 first")
    stream(context, "/edit 2 erstens")
    assert turn_texts(context) == ["erstens", "Eins."]
    assert [message["content"] for message in model.asked[-1]] == ["erstens"]
    assert shown(context, "/alt") == "message 1 of 2, followed by 2 more turns: first\nOne."
    assert turn_texts(context) == ["first", "One.", "second", "Two."]
    assert shown(context, "/alt") == "message 2 of 2: erstens\nEins."


def test_an_edited_reply_counts_as_the_models_own_and_can_be_continued() -> None:
    model, context = make("A B C D", "yes")
    stream(context, "spell")
    assert run_command(context, "/edit --reply") == Draft("/edit --reply 1 A B C D")
    assert shown(context, "/edit --reply 1 X Y") == ("edited the reply (alternative 2 of 2); /continue resumes it")
    assert turn_texts(context) == ["spell", "X Y"]
    assert stream(context, "/continue").text == "X Y C D"
    assert model.calls[-1]["continuing"] is True
    assert turn_texts(context) == ["spell", "X Y C D"]
    # The continued reply has replaced the edited one, so only it and the model's reply are left.
    assert shown(context, "/alt") == "reply 1 of 2\nA B C D"
    stream(context, "more?")
    assert [message["content"] for message in model.asked[-1]] == ["spell", "A B C D", "more?"]


@pytest.mark.parametrize("text", ["one\ntwo", "    indented", "3 apples", "--reply to him", "a  b"])
def test_the_draft_of_edit_can_be_sent_unchanged(text: str) -> None:
    _, context = make()
    stream(context, text)
    draft = run_command(context, "/edit")
    assert isinstance(draft, Draft)
    stream(context, draft.text)
    assert [node.content for node in context.session.tree.siblings(1)] == [text, text]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_cancelled_reply_continues_where_it_stopped(stop_after: int) -> None:
    model, context = make("one two three four")
    assert stream(context, "count", stop_after=stop_after).finish_reason == "cancelled"
    begun = context.session.reply()
    assert (begun.finish_reason, len(begun.token_ids or ())) == ("cancelled", stop_after)
    done = stream(context, "/continue")
    assert done.text == "one two three four"
    assert done.stats.generated_tokens == 4 - stop_after
    assert model.calls[1] == {**model.calls[0], "continuing": True}
    assert model.asked[1][-1] == {"role": "assistant", "content": begun.content, "token_ids": begun.token_ids}
    assert turn_texts(context) == ["count", "one two three four"]
    assert len(context.session.tree.children(1)) == 1
    with pytest.raises(UsageError, match="the reply is complete: ask for more"):
        run_command(context, "/continue")


def test_a_reply_cut_by_its_length_continues_for_the_same_length() -> None:
    _, context = make("a b c d e", reply_settings=replace(HOT, max_tokens=2))
    texts = [stream(context, "spell").text, stream(context, "/continue").text, stream(context, "/continue").text]
    assert texts == ["a b", "a b c d", "a b c d e"]


def test_a_continued_reply_counts_as_one_on_the_screen() -> None:
    _, context = make("a ``` b\n```\nx\n``` c")
    status = PrefillStatus(io.StringIO(), PLAIN, enabled=False)
    seen: list[TextEvent] = []  # The prefill, then the words.
    go = context.session.ask("go")
    show_reply(lambda _: replying(context.session, go, lambda: len(seen) > 2), context.view, status, seen.append)
    assert context.view.last_reply == "a ```"
    outcome = run_command(context, "/continue")
    assert isinstance(outcome, StreamReply)
    reply = outcome.begin()
    begin = partial(context.session.stream, reply, context.session.prompt(reply))
    assert (
        show_reply(begin, context.view, status, already_shown=reply.continued.content).text
        == context.view.last_reply
        == "a ``` b\n```\nx\n``` c"
    )


def test_a_continuation_cancelled_before_its_first_token_changes_nothing() -> None:
    _, context = make("a b c d e")
    stream(context, "spell", stop_after=2)
    nodes = context.session.tree.nodes
    stream(context, "/continue", stop_after=0)
    assert context.session.tree.nodes == nodes
    assert stream(context, "/continue").text == "a b c d e"


def test_a_stopped_reply_with_later_turns_stays_beside_its_continuation() -> None:
    _, context = make("a b c", "d e c")  # The scripted model continues its newest reply.
    stream(context, "spell", stop_after=2)
    stream(context, "fine?")
    shown(context, "/undo")
    assert stream(context, "/continue").text == "a b c"
    assert shown(context, "/alt") == "reply 1 of 2, followed by 2 more turns\na b"
    assert turn_texts(context) == ["spell", "a b", "fine?", "d e c"]


def test_an_abandoned_continuation_keeps_its_text() -> None:
    _, context = make("a b c d e")
    stream(context, "spell", stop_after=2)
    events = replying(context.session, context.session.continue_reply())
    for _ in range(3):  # The prefill and two tokens.
        next(events)
    events.close()
    reply = context.session.reply()
    assert (reply.content, reply.finish_reason, reply.replaces) == ("a b c d", "cancelled", 2)
    assert stream(context, "/continue").text == "a b c d e"


def test_settings_changed_since_apply_to_a_continuation_and_no_others() -> None:
    model, context = make("a b c d e", reply_settings=replace(HOT, seed=3, stop=("END",)))
    stream(context, "spell", stop_after=2)
    session = context.session
    session.reply_settings = session.reply_settings.changed("repeat-penalty", "1.2", session.defaults)
    stream(context, "/continue", stop_after=1)
    assert model.calls[-1]["settings"] == SamplingParams(temperature=0.7, repeat_penalty=1.2)
    assert (model.calls[-1]["seed"], model.calls[-1]["stop"]) == (3, ("END",))


def test_a_message_without_a_reply_becomes_an_alternative_of_the_next() -> None:
    model, context = make("fine")
    stream(context, "never mind", stop_after=0)
    assert turn_texts(context) == []
    stream(context, "how are you?")
    assert [message["content"] for message in model.asked[1]] == ["how are you?"]
    assert [node.content for node in context.session.tree.nodes] == ["never mind", "how are you?", "fine"]


def test_clear_starts_over_and_can_be_undone() -> None:
    _, context = make("hello")
    stream(context, "hi")
    context.session.system = "Be brief."
    assert shown(context, "/clear") == "cleared the conversation; /redo restores it"
    assert turn_texts(context) == ["Be brief."]
    assert shown(context, "/clear") == "the conversation is already empty"
    assert shown(context, "/redo") == "restored 2 turns\nthe conversation now ends with the reply “hello”"


def test_long_turns_are_named_by_their_beginning() -> None:
    _, context = make("word " * 40)
    stream(context, "a\n\nquestion " + "x" * 80)
    stream(context, "b")
    assert shown(context, "/undo").splitlines()[1] == (
        "the conversation now ends with the reply “word word word word word word word word word word word word…”"
    )
    assert shown(context, "/undo").startswith("undid “a question " + "x" * 48 + "…”; ")


REPLIES = ("ask", "ask and stop", "stop at once", "retry", "retry and stop", "continue", "continue and stop")
MOVES = (
    "/undo",
    "/undo 2",
    "/redo",
    "/edit 1 new",
    "/edit 2 newer",
    "/edit --reply 1 said",
    "/alt",
    "/alt 1",
    "/clear",
)


@settings(max_examples=count(250, 50))
@given(st.lists(st.sampled_from(REPLIES + MOVES), max_size=25))
def test_no_sequence_of_commands_loses_turns_or_breaks_their_order(steps: list[str]) -> None:
    model, context = make("one two three", "four five six seven", "eight")
    recorded: list[Event] = []
    tree = context.session.tree
    tree.listener = recorded.append
    for number, step in enumerate(steps):
        known = tree.nodes
        typed = {"ask": f"question {number}", "stop": f"question {number}"}.get(step.split()[0], f"/{step.split()[0]}")
        stop_after = 0 if step == "stop at once" else 2 if step.endswith("stop") else None
        with suppress(UsageError):
            if step.startswith(("/undo", "/redo", "/alt", "/clear", "/edit --reply")):
                shown(context, step)
            else:
                stream(context, step if step.startswith("/edit") else typed, stop_after)
        assert tree.nodes[: len(known)] == known
        roles = [message["role"] for message in context.session.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        reached = [None, *(node.id for node in tree.nodes)]
        seen = [child.id for node_id in reached for child in tree.children(node_id)]
        continued = {node.replaces for node in tree.nodes}
        assert sorted(seen) == [node.id for node in tree.nodes if node.id not in continued]
        assert not any(tree.children(node_id) for node_id in continued - {None})
        again = Tree.replay(recorded)
        assert (again.nodes, again.head, again.messages()) == (tree.nodes, tree.head, tree.messages())
        assert all(ids is None or model.decode(ids) == text for ids, text in ((n.token_ids, n.content) for n in known))
