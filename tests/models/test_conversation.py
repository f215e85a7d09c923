"""A conversation with the embedded model: what each command reads again, and that a cut reply ends as it would have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import qwchat
from models.recipe.recipe import MODEL
from quant import convert
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Reply, Session
from qwchat.conversation.tree import Event, Tree
from qwchat.cpu.workspace import CHUNK
from qwchat.events import Done, Prefilled, TextStep
from qwchat.request import SamplingParams
from tests.chat.fakes import replying

QUESTION = "What can you do?"
GREEDY = SamplingParams()
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 2, "maxItems": 3},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    }
)
WAYS = {
    "greedy": GREEDY,
    "penalties": SamplingParams(repeat_penalty=1.15, presence_penalty=0.3, frequency_penalty=0.2),
    "sampled": SamplingParams(temperature=1.0, top_k=40, top_p=0.95),
    "sampled with penalties": SamplingParams(temperature=1.3, repeat_penalty=1.1),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    folder = tmp_path_factory.mktemp("conversation") / "mini-q4"
    list(convert(MODEL, folder))
    with qwchat.load(Path(folder), threads=2) as loaded:
        yield loaded


def make(model: qwchat.Model, settings: SamplingParams = GREEDY, *, told: list[Event] | None = None) -> Session:
    tree = Tree(None if told is None else told.append)
    return Session(model, ReplySettings(settings, seed=11), tree=tree, fingerprint=model.folder.fingerprint)


def end_of(events: Reply) -> Done:
    found = list(events)[-1]
    assert isinstance(found, Done)
    return found


def cut(session: Session, tokens: int, begin: str = "ask") -> Done:
    """A reply that is stopped after so many tokens."""
    steps: list[TextStep] = []
    stop = lambda: len(steps) >= tokens  # noqa: E731
    reply = session.ask(QUESTION) if begin == "ask" else session.continue_reply()
    for event in replying(session, reply, stop):
        if isinstance(event, TextStep) and event.token_id is not None:
            steps.append(event)
        elif isinstance(event, Done):
            return event
    raise AssertionError("the reply has no end")


def asked(session: Session, question: str) -> Reply:
    return replying(session, session.ask(question))


def resumed(session: Session) -> Reply:
    return replying(session, session.continue_reply())


def common(model: qwchat.Model, before: list[int], done: Done) -> int:
    """How many tokens of the newest prompt the cache held before: all but the last at most."""
    prompt = model.cached_ids[: done.stats.prompt_tokens].tolist()
    same = next((n for n, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
    return min(same, len(before), len(prompt) - 1)


@pytest.mark.parametrize("speculate", [True, False], ids=["guessing", "plain"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_a_reply_stopped_again_and_again_ends_as_it_would_have(model: qwchat.Model, way: str, speculate: bool) -> None:
    def session() -> Session:
        made = make(model, WAYS[way])
        made.reply_settings = replace(made.reply_settings, speculate=speculate, max_tokens=120)
        return made

    whole = end_of(asked(session(), QUESTION))
    assert len(whole.token_ids) > 30
    talk = session()
    done = cut(talk, 1)
    for tokens in (1, 2, 3, 5, 8):
        done = cut(talk, tokens, "resume")
        assert done.finish_reason == "cancelled"
        # The token that was drawn last had not been read; everything else is still in the cache.
        assert done.stats.cached_tokens == done.stats.prompt_tokens - 1
    talk.reply_settings = replace(talk.reply_settings, max_tokens=120 - len(done.token_ids))
    done = end_of(replying(talk, talk.continue_reply()))
    assert (done.text, done.token_ids, done.seed) == (whole.text, whole.token_ids, whole.seed)
    assert [message["content"] for message in talk.messages] == [QUESTION, whole.text]
    assert len(talk.tree.children(1)) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_reply_cut_by_its_length_ends_as_it_would_have(model: qwchat.Model, way: str) -> None:
    whole = end_of(asked(replace_limit(make(model, WAYS[way]), 90), QUESTION))
    talk = replace_limit(make(model, WAYS[way]), 30)
    assert end_of(replying(talk, talk.ask(QUESTION))).finish_reason in ("length", "stop")
    while talk.tree.node(talk.tree.head or 0).finish_reason == "length" and len(talk.reply().token_ids or ()) < 90:
        done = end_of(replying(talk, talk.continue_reply()))
        assert done.stats.cached_tokens == done.stats.prompt_tokens - 1
    assert talk.reply().content == whole.text
    assert talk.reply().token_ids == whole.token_ids


def replace_limit(session: Session, max_tokens: int) -> Session:
    session.reply_settings = replace(session.reply_settings, max_tokens=max_tokens)
    return session


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_process_is_gone_on_from_by_another(model: qwchat.Model, way: str) -> None:
    told: list[Event] = []
    whole = end_of(asked(replace_limit(make(model, WAYS[way]), 60), QUESTION))
    talk = replace_limit(make(model, WAYS[way], told=told), 60)
    for number, _ in enumerate(replying(talk, talk.ask(QUESTION))):
        if number == 9:
            break
    # Only what was told by now is on the disk; the settings of the other process are different.
    tree = Tree.replay([dict(event) for event in told[:1]])
    model.cached_context.truncate(0)
    other = Session(model, ReplySettings(SamplingParams(top_k=3)), tree=tree, fingerprint=model.folder.fingerprint)
    done = end_of(resumed(replace_limit(other, 60)))
    assert (done.text, done.token_ids, done.seed) == (whole.text, whole.token_ids, whole.seed)


def test_every_command_reads_only_what_differs(model: qwchat.Model) -> None:
    talk = replace_limit(make(model), 400)
    talk.system = "You are brief."
    model.cached_context.truncate(0)

    def check(events: Reply) -> tuple[int, int]:
        """Cached and new tokens of a reply, after a comparison with what the cache held."""
        before = model.cached_ids.tolist()
        done = end_of(events)
        assert done.finish_reason == "stop"
        assert done.stats.cached_tokens == common(model, before, done)
        return done.stats.cached_tokens, done.stats.prompt_tokens - done.stats.cached_tokens

    def size(text: str) -> int:
        return len(model.encode(text))

    header, end = size("user\n") + 1, size("\n") + 1  # <|im_start|>user\n and <|im_end|>\n
    assistant = 1 + size("assistant\n")
    assert check(replying(talk, talk.ask("Name a planet.")))[0] == 0
    first_prompt = model.count([*talk.messages[:-1]])
    held = len(model.cached_ids)
    # A follow-up: the whole of the conversation is there, the new turn is read.
    assert check(replying(talk, talk.ask("How do I convert a model?"))) == (
        held,
        end + header + size("How do I convert a model?") + end + assistant,
    )
    prompt = len(model.prompt_ids([*talk.messages[:-1]]))
    # The same question again: the last token of the prompt is read, for its logits.
    talk.reply_settings = replace(talk.reply_settings, sampling=SamplingParams(temperature=0.5))
    assert check(replying(talk, talk.retry(seed=1))) == (prompt - 1, 1)
    # The other reply, gone on from: up to the end of the question.
    talk.select_alternative(0)
    first_reply = talk.reply()
    cached, new = check(replying(talk, talk.ask("Thanks.")))
    shared = 0
    for ours, theirs in zip(
        first_reply.token_ids or (), talk.tree.siblings(first_reply.id)[1].token_ids or (), strict=False
    ):
        if ours != theirs:
            break
        shared += 1
    assert cached == prompt + shared
    # Back by one question, which costs nothing; another one instead of it.
    talk.undo()
    cached, new = check(replying(talk, talk.ask("Why?")))
    assert new == size("Why?") + end + assistant
    # The first question edited: the system prompt and the words that stayed are there.
    cached, new = check(replying(talk, talk.edit_question(3, "Name a sea.")))
    assert cached == first_prompt - assistant - end - size(" planet.")
    assert new == size(" sea.") + end + assistant
    # A reply edited and gone on with: up to where the text differs, then the new text.
    prompt = len(model.prompt_ids([*talk.messages[:-1]]))
    talk.edit_reply(1, "Zounds")
    assert check(replying(talk, talk.continue_reply())) == (prompt, size("Zounds"))


def test_what_was_held_back_is_gone_on_with(model: qwchat.Model) -> None:
    whole = end_of(asked(replace_limit(make(model), 200), QUESTION))
    stop = whole.text[40:46]
    talk = make(model)
    talk.reply_settings = replace(talk.reply_settings, stop=(stop,))
    expected = end_of(replying(talk, talk.ask(QUESTION)))
    assert expected.text == whole.text[: whole.text.index(stop)]
    for tokens in range(len(expected.token_ids) - 4, len(expected.token_ids)):
        talk = make(model)
        talk.reply_settings = replace(talk.reply_settings, stop=(stop,))
        assert cut(talk, tokens).finish_reason == "cancelled"
        assert end_of(replying(talk, talk.continue_reply())).text == expected.text


def test_a_reply_that_goes_in_circles_is_ended_and_can_be_gone_on_with(model: qwchat.Model) -> None:
    def session(limit: int) -> Session:
        talk = make(model, SamplingParams(presence_penalty=-2.0, frequency_penalty=-2.0))
        end_of(asked(replace_limit(talk, 1), "Sing."))
        talk.edit_reply(1, "la la la la la la la")
        talk.reply_settings = talk.reply_settings.changed("loop-guard", str(limit), talk.defaults)
        return talk

    whole = end_of(resumed(replace_limit(session(0), 300)))
    assert whole.finish_reason == "length"
    talk = session(60)
    done = end_of(resumed(replace_limit(talk, 300)))
    assert (done.finish_reason, done.text) == ("repetition", whole.text[: len(done.text)])
    assert 60 < done.stats.generated_tokens < 100
    talk.reply_settings = talk.reply_settings.changed("loop-guard", "0", talk.defaults)
    assert end_of(resumed(replace_limit(talk, 300 - done.stats.generated_tokens))).text == whole.text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constrained_reply_goes_on_within_its_constraint(model: qwchat.Model, temperature: float) -> None:
    def session() -> Session:
        talk = replace_limit(make(model, SamplingParams(temperature=temperature)), 150)
        talk.reply_settings = talk.reply_settings.changed("json-schema", SCHEMA, talk.defaults)
        return talk

    whole = end_of(asked(session(), QUESTION))
    assert whole.meets_constraint
    for tokens in range(1, len(whole.token_ids), 6):
        talk = session()
        cut(talk, tokens)
        # In another process, whose settings know of no constraint.
        tree = Tree.replay(json.loads(json.dumps(list(talk.tree.events()))))
        other = Session(model, ReplySettings(GREEDY, max_tokens=150), tree=tree, fingerprint=model.folder.fingerprint)
        done = end_of(resumed(other))
        assert (done.token_ids, done.meets_constraint) == (whole.token_ids, True)


def test_a_question_stopped_while_it_is_read_is_answered_from_there(model: qwchat.Model) -> None:
    question = "Which of these is a sea? " + "north south east west " * 150
    whole = end_of(asked(replace_limit(make(model), 30), question))
    model.cached_context.truncate(0)
    talk = replace_limit(make(model), 30)
    read: list[Prefilled] = []
    for event in replying(talk, talk.ask(question), lambda: len(read) == 2):
        if isinstance(event, Prefilled):
            read.append(event)
        else:
            assert isinstance(event, Done)
            assert (event.finish_reason, event.text, event.token_ids) == ("cancelled", "", ())
    assert read[-1].done == 2 * CHUNK < read[-1].total
    assert talk.messages == []
    done = end_of(replying(talk, talk.continue_reply()))
    assert done.stats.cached_tokens == 2 * CHUNK
    assert (done.text, done.seed) == (whole.text, whole.seed)
