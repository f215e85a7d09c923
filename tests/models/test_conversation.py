"""Conversations with the embedded model: commands evaluate only new tokens, and a stopped reply ends unchanged."""

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


def make(model: qwchat.Model, settings: SamplingParams = GREEDY, *, written: list[Event] | None = None) -> Session:
    tree = Tree(None if written is None else written.append)
    return Session(model, ReplySettings(settings, seed=11), tree=tree, fingerprint=model.folder.fingerprint)


def end_of(events: Reply) -> Done:
    found = list(events)[-1]
    assert isinstance(found, Done)
    return found


def stop_after(session: Session, tokens: int, begin: str = "ask") -> Done:
    """Stop a reply after `tokens` tokens and return its end."""
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


def count_common_tokens(model: qwchat.Model, before: list[int], done: Done) -> int:
    """Return how many tokens of the latest prompt the cache held before, at most all but the last."""
    prompt = model.cached_ids[: done.stats.prompt_tokens].tolist()
    same = next((n for n, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
    return min(same, len(before), len(prompt) - 1)


@pytest.mark.parametrize("speculate", [True, False], ids=["guessing", "plain"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_a_reply_stopped_repeatedly_ends_as_it_would_have(model: qwchat.Model, way: str, speculate: bool) -> None:
    def new_session() -> Session:
        made = make(model, WAYS[way])
        made.reply_settings = replace(made.reply_settings, speculate=speculate, max_tokens=120)
        return made

    whole = end_of(asked(new_session(), QUESTION))
    assert len(whole.token_ids) > 30
    session = new_session()
    done = stop_after(session, 1)
    for tokens in (1, 2, 3, 5, 8):
        done = stop_after(session, tokens, "resume")
        assert done.finish_reason == "cancelled"
        # The last sampled token was not evaluated; all others are still in the cache.
        assert done.stats.cached_tokens == done.stats.prompt_tokens - 1
    session.reply_settings = replace(session.reply_settings, max_tokens=120 - len(done.token_ids))
    done = end_of(replying(session, session.continue_reply()))
    assert (done.text, done.token_ids, done.seed) == (whole.text, whole.token_ids, whole.seed)
    assert [message["content"] for message in session.messages] == [QUESTION, whole.text]
    assert len(session.tree.children(1)) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_reply_cut_by_its_length_ends_as_it_would_have(model: qwchat.Model, way: str) -> None:
    whole = end_of(asked(with_limit(make(model, WAYS[way]), 90), QUESTION))
    session = with_limit(make(model, WAYS[way]), 30)
    assert end_of(replying(session, session.ask(QUESTION))).finish_reason in ("length", "stop")
    while (
        session.tree.node(session.tree.head or 0).finish_reason == "length"
        and len(session.reply().token_ids or ()) < 90
    ):
        done = end_of(replying(session, session.continue_reply()))
        assert done.stats.cached_tokens == done.stats.prompt_tokens - 1
    assert session.reply().content == whole.text
    assert session.reply().token_ids == whole.token_ids


def with_limit(session: Session, max_tokens: int) -> Session:
    session.reply_settings = replace(session.reply_settings, max_tokens=max_tokens)
    return session


@pytest.mark.parametrize("way", WAYS)
def test_another_process_continues_the_reply_of_a_killed_one(model: qwchat.Model, way: str) -> None:
    written: list[Event] = []
    whole = end_of(asked(with_limit(make(model, WAYS[way]), 60), QUESTION))
    session = with_limit(make(model, WAYS[way], written=written), 60)
    for number, _ in enumerate(replying(session, session.ask(QUESTION))):
        if number == 9:
            break
    # Only the events so far are on disk; the other process has different settings.
    tree = Tree.replay([dict(event) for event in written[:1]])
    model.cached_context.truncate(0)
    other = Session(model, ReplySettings(SamplingParams(top_k=3)), tree=tree, fingerprint=model.folder.fingerprint)
    done = end_of(resumed(with_limit(other, 60)))
    assert (done.text, done.token_ids, done.seed) == (whole.text, whole.token_ids, whole.seed)


def test_every_command_evaluates_only_new_tokens(model: qwchat.Model) -> None:
    session = with_limit(make(model), 400)
    session.system = "You are brief."
    model.cached_context.truncate(0)

    def check(events: Reply) -> tuple[int, int]:
        """Compare the cached tokens with the previous cache and return the cached and the new tokens."""
        before = model.cached_ids.tolist()
        done = end_of(events)
        assert done.finish_reason == "stop"
        assert done.stats.cached_tokens == count_common_tokens(model, before, done)
        return done.stats.cached_tokens, done.stats.prompt_tokens - done.stats.cached_tokens

    def token_count(text: str) -> int:
        return len(model.encode(text))

    header, end = token_count("user\n") + 1, token_count("\n") + 1  # <|im_start|>user\n and <|im_end|>\n
    assistant = 1 + token_count("assistant\n")
    assert check(replying(session, session.ask("Name a planet.")))[0] == 0
    first_prompt = model.count([*session.messages[:-1]])
    cached_before = len(model.cached_ids)
    # A follow-up evaluates the new turn only.
    assert check(replying(session, session.ask("How do I convert a model?"))) == (
        cached_before,
        end + header + token_count("How do I convert a model?") + end + assistant,
    )
    prompt = len(model.prompt_ids([*session.messages[:-1]]))
    # Another reply evaluates the last token of the prompt, for its logits.
    session.reply_settings = replace(session.reply_settings, sampling=SamplingParams(temperature=0.5))
    assert check(replying(session, session.retry(seed=1))) == (prompt - 1, 1)
    # A follow-up to the first reply keeps the tokens that both replies have in common.
    session.select_alternative(0)
    first_reply = session.reply()
    cached, new = check(replying(session, session.ask("Thanks.")))
    shared = 0
    for ours, theirs in zip(
        first_reply.token_ids or (), session.tree.siblings(first_reply.id)[1].token_ids or (), strict=False
    ):
        if ours != theirs:
            break
        shared += 1
    assert cached == prompt + shared
    # Undo evaluates nothing; the next question evaluates itself.
    session.undo()
    cached, new = check(replying(session, session.ask("Why?")))
    assert new == token_count("Why?") + end + assistant
    # An edited first question keeps the system prompt and the unchanged words.
    cached, new = check(replying(session, session.edit_question(3, "Name a sea.")))
    assert cached == first_prompt - assistant - end - token_count(" planet.")
    assert new == token_count(" sea.") + end + assistant
    # Continuing an edited reply evaluates the text from the first difference.
    prompt = len(model.prompt_ids([*session.messages[:-1]]))
    session.edit_reply(1, "Zounds")
    assert check(replying(session, session.continue_reply())) == (prompt, token_count("Zounds"))


def test_text_held_back_for_a_stop_string_is_continued(model: qwchat.Model) -> None:
    whole = end_of(asked(with_limit(make(model), 200), QUESTION))
    stop = whole.text[40:46]
    session = make(model)
    session.reply_settings = replace(session.reply_settings, stop=(stop,))
    expected = end_of(replying(session, session.ask(QUESTION)))
    assert expected.text == whole.text[: whole.text.index(stop)]
    for tokens in range(len(expected.token_ids) - 4, len(expected.token_ids)):
        session = make(model)
        session.reply_settings = replace(session.reply_settings, stop=(stop,))
        assert stop_after(session, tokens).finish_reason == "cancelled"
        assert end_of(replying(session, session.continue_reply())).text == expected.text


def test_a_repetitive_reply_is_stopped_and_can_be_continued(model: qwchat.Model) -> None:
    def new_session(limit: int) -> Session:
        session = make(model, SamplingParams(presence_penalty=-2.0, frequency_penalty=-2.0))
        end_of(asked(with_limit(session, 1), "Sing."))
        session.edit_reply(1, "la la la la la la la")
        session.reply_settings = session.reply_settings.changed("loop-guard", str(limit), session.defaults)
        return session

    whole = end_of(resumed(with_limit(new_session(0), 300)))
    assert whole.finish_reason == "length"
    session = new_session(60)
    done = end_of(resumed(with_limit(session, 300)))
    assert (done.finish_reason, done.text) == ("repetition", whole.text[: len(done.text)])
    assert 60 < done.stats.generated_tokens < 100
    session.reply_settings = session.reply_settings.changed("loop-guard", "0", session.defaults)
    assert end_of(resumed(with_limit(session, 300 - done.stats.generated_tokens))).text == whole.text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constrained_reply_continues_within_its_constraint(model: qwchat.Model, temperature: float) -> None:
    def new_session() -> Session:
        session = with_limit(make(model, SamplingParams(temperature=temperature)), 150)
        session.reply_settings = session.reply_settings.changed("json-schema", SCHEMA, session.defaults)
        return session

    whole = end_of(asked(new_session(), QUESTION))
    assert whole.meets_constraint
    for tokens in range(1, len(whole.token_ids), 6):
        session = new_session()
        stop_after(session, tokens)
        # Continue in another process, whose settings have no constraint.
        tree = Tree.replay(json.loads(json.dumps(list(session.tree.events()))))
        other = Session(model, ReplySettings(GREEDY, max_tokens=150), tree=tree, fingerprint=model.folder.fingerprint)
        done = end_of(resumed(other))
        assert (done.token_ids, done.meets_constraint) == (whole.token_ids, True)


def test_a_prompt_stopped_during_prefill_is_continued(model: qwchat.Model) -> None:
    question = "Which of these is a sea? " + "north south east west " * 150
    whole = end_of(asked(with_limit(make(model), 30), question))
    model.cached_context.truncate(0)
    session = with_limit(make(model), 30)
    read: list[Prefilled] = []
    for event in replying(session, session.ask(question), lambda: len(read) == 2):
        if isinstance(event, Prefilled):
            read.append(event)
        else:
            assert isinstance(event, Done)
            assert (event.finish_reason, event.text, event.token_ids) == ("cancelled", "", ())
    assert read[-1].done == 2 * CHUNK < read[-1].total
    assert session.messages == []
    done = end_of(replying(session, session.continue_reply()))
    assert done.stats.cached_tokens == 2 * CHUNK
    assert (done.text, done.seed) == (whole.text, whole.seed)
