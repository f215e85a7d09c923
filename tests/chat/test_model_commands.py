"""`/model`: the list, the switch, and what stays when a model cannot be opened."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwchat.chat.chat_models import ModelChoice, OpenedModel
from qwchat.chat.commands import CommandContext, Show, parse, suggestions
from qwchat.chat.display import Table
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.session_recorder import SessionRecorder
from qwchat.chat.view.reply import ReplyView
from qwchat.conversation.session_store import SessionStore
from qwchat.errors import ModelError, TemplateError, UsageError
from qwchat.markdown.styles import PLAIN
from qwchat.messages import Message
from qwchat.request import PromptOptions, SamplingParams
from qwchat.settings.resolve import Settings
from tests.chat.fakes import FakeModel, FakePrompt, replying


class StrictModel(FakeModel):
    """A model whose template refuses conversations."""

    def prompt(
        self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
    ) -> FakePrompt:
        raise TemplateError("roles must alternate")


class Models:
    """Two models, a broken one, and one whose template refuses every conversation."""

    def __init__(self) -> None:
        self.small = FakeModel(name="small", fingerprint="aa", reasoning="open", replies=["I see\n</think>\n\nYes."])
        self.large = FakeModel(name="large", fingerprint="bb", replies=["No."])
        self.large.defaults = SamplingParams(temperature=0.6, top_k=20)
        self.strict = StrictModel(name="strict", fingerprint="cc")
        self.current, self.next = self.small, self.small

    def choices(self) -> Sequence[ModelChoice]:
        return [ModelChoice(model.name, "1.0 GB", model is self.current) for model in (self.large, self.small)]

    def open(self, name: str, settings: Settings) -> OpenedModel | None:
        if name not in ("small", "large", "strict"):
            raise ModelError(f"there is no model {name!r}")
        self.next = getattr(self, name)
        if self.next is self.current:
            return None
        self.next.context_size = settings["ctx"] or 2048
        return OpenedModel(self.next, name, self.next.fingerprint, self.next.defaults, 4.5)

    def keep(self, opened: OpenedModel) -> None:
        self.current.close()
        self.current = self.next

    def discard(self, opened: OpenedModel) -> None:
        self.next.close()


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def context(models: Models, tmp_path: Path) -> CommandContext:
    recorder = SessionRecorder(SessionStore(tmp_path / "sessions"))
    recorder.set_model("small", "aa")
    settings = ReplySettings.from_settings(Settings(), models.small.defaults)
    session = Session(models.small, settings, tree=recorder.tree, fingerprint="aa", model_name="small")
    return CommandContext(session, "small", ReplyView(io.StringIO(), PLAIN), recorder=recorder, models=models)


def run(context: CommandContext, text: str) -> Show:
    command = parse(text)
    assert command is not None
    outcome = command[0].run(context, command[1])
    assert isinstance(outcome, Show)
    return outcome


def ask(context: CommandContext, question: str) -> None:
    for _ in replying(context.session, context.session.ask(question)):
        pass


def test_the_list_marks_the_current_model(context: CommandContext) -> None:
    assert run(context, "/model").table == Table(
        ("", "model", "size"), [("", "large", "1.0 GB"), ("*", "small", "1.0 GB")], right=(2,)
    )


def test_names_are_completed(context: CommandContext) -> None:
    assert [(each.text, each.replaced, each.note) for each in suggestions(context, "/model la")] == [
        ("large", 2, "1.0 GB")
    ]
    assert [(each.text, each.note) for each in suggestions(context, "/model sm")] == [("small", "current")]


def test_the_other_model_continues_the_conversation(context: CommandContext, models: Models) -> None:
    ask(context, "True?")
    shown = run(context, "/model large")
    assert shown.text == (
        "switched to large at 4.50 bits per weight, context 2,048 tokens; 4 tokens will be evaluated again"
    )
    assert shown.hint == "default settings of this model: temp 0.6, top-k 20"
    assert (models.small.closed, models.large.closed) == (True, False)
    ask(context, "Sure?")
    # The thought of the other model is left out, and its token ids stand for other words here.
    assert models.large.asked == [
        [
            {"role": "user", "content": "True?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Sure?"},
        ]
    ]
    assert models.large.calls[0]["settings"] == SamplingParams(temperature=0.6, top_k=20)
    assert run(context, "/model large").text == "large is already the model of this chat"
    assert context.recorder.last_model == "large"


def test_the_session_names_the_model_of_each_reply(context: CommandContext, tmp_path: Path) -> None:
    ask(context, "True?")
    run(context, "/model large")
    ask(context, "Sure?")
    context.recorder.flush()
    again = SessionRecorder(SessionStore(tmp_path / "sessions"))
    context.recorder.close()
    assert again.store is not None
    tree = again.open(again.store.latest())
    replies = [(node.model_name, node.model) for node in tree.path() if node.role == "assistant"]
    assert replies == [("small", "aa"), ("large", "bb")]
    assert (again.first_model, again.last_model) == ("small", "large")
    assert again.set_model("small", "aa") == (
        "the last reply came from another model (large): small evaluates the conversation again"
    )
    run(context, f"/export md {tmp_path}/talk.md")
    headings = [line for line in (tmp_path / "talk.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## You", "## small", "## You", "## large"]


def test_settings_of_the_user_stay_and_defaults_follow(context: CommandContext) -> None:
    run(context, "/set temp 1.5")
    assert run(context, "/model large").hint == "default settings of this model: top-k 20"
    settings = context.session.reply_settings
    assert (settings["temp"], settings.origin("temp")) == (1.5, "/set temp")
    assert (settings["top-k"], settings.origin("top-k")) == (20, "the model's generation_config.json")
    assert run(context, "/set temp default").text == "temp 0.6"
    run(context, "/model small")
    settings = context.session.reply_settings
    assert (settings["temp"], settings["top-k"], settings.origin("top-k")) == (0.0, 0, "built in")


def test_settings_of_the_engine_follow(context: CommandContext, models: Models) -> None:
    from qwchat.chat.chat_settings import ChatSettings

    context.settings = ChatSettings(context.session, Settings(), models.small)
    run(context, "/set ctx 300")
    assert "context 300 tokens" in run(context, "/model large").text
    run(context, "/set ctx 400")
    assert (models.large.context, models.small.context) == (400, 300)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("missing", ModelError, "there is no model 'missing'"), ("strict", TemplateError, "roles must alternate")],
)
def test_a_model_that_fails_changes_nothing(
    context: CommandContext, models: Models, name: str, error: type[Exception], message: str
) -> None:
    ask(context, "True?")
    before = context.session.reply_settings
    with pytest.raises(error, match=message):
        run(context, f"/model {name}")
    assert models.strict.closed == (name == "strict")
    assert not models.small.closed
    assert (context.model_name, context.recorder.last_model) == ("small", "small")
    assert context.session.reply_settings == before
    ask(context, "Sure?")
    assert len(models.small.asked) == 2
    assert models.small.asked[1][1]["token_ids"] == context.session.tree.path()[1].token_ids


def test_a_thought_of_another_model_is_not_continued(context: CommandContext) -> None:
    run(context, "/set max-tokens 2")
    ask(context, "True?")
    assert context.session.reply().finish_reason == "length"
    run(context, "/set max-tokens default")
    run(context, "/model large")
    command = parse("/continue")
    assert command is not None
    with pytest.raises(UsageError, match="a thought of another model, which this one cannot continue: use /retry"):
        command[0].run(context, "")
    for _ in replying(context.session, context.session.retry()):
        pass
    assert context.session.reply().content == "No."


def test_a_chat_with_one_model_says_so(context: CommandContext) -> None:
    context.models = None
    with pytest.raises(UsageError, match="the model of this chat cannot be changed"):
        run(context, "/model")
    assert list(suggestions(context, "/model x")) == []
