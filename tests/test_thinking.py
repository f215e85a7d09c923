"""Replies of reasoning models through the Python API, on random checkpoints with think tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qwchat
from quant import convert
from qwchat.constraints import Constraint
from qwchat.errors import UsageError
from qwchat.events import Done, Finished, Stats, TextStep, TokenStep
from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG, split_reply
from qwchat.request import PromptOptions, Request, SamplingParams
from qwchat.text.prompts import build_prompt
from qwchat.text.reply_builder import ReplyBuilder
from tests.thinking import CLOSING_ID, OPENED, OPENING_ID, SWITCHED, make_thinking_checkpoint

HOT = SamplingParams(temperature=1.5)
ASK: list[Message] = [{"role": "user", "content": "hello the hell"}]
STATS = Stats(9, 0, 9, 0.5, 0.25, 0.1, 512)


def load(folder: Path, template: str, *, tokens: bool = True) -> qwchat.Model:
    checkpoint = make_thinking_checkpoint(folder / "tiny", template, tokens=tokens)
    list(convert(checkpoint, folder / "tiny-q4"))
    return qwchat.load(folder / "tiny-q4", threads=2)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    with load(tmp_path_factory.mktemp("opened"), OPENED) as model:
        yield model


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    with load(tmp_path_factory.mktemp("switched"), SWITCHED) as model:
        yield model


def events_of(model: qwchat.Model, messages: list[Message], **options: Any) -> tuple[list[TextStep], Done]:
    """Return steps and end of a reply, whose parts must agree."""
    events = list(model.chat(messages, settings=HOT, **options))
    steps, end = [event for event in events if isinstance(event, TextStep)], events[-1]
    assert isinstance(end, Done)
    assert "".join(step.text for step in steps if step.reasoning) == end.reasoning
    assert "".join(step.text for step in steps if not step.reasoning) == end.text
    return steps, end


def seed_with(model: qwchat.Model, *tokens: int, **options: Any) -> int:
    """Return a seed whose reply has these tokens, but not at its very end."""
    for seed in range(400):
        ids = events_of(model, ASK, seed=seed, max_tokens=80, **options)[1].token_ids
        if set(tokens) <= set(ids[:-20]):
            return seed
    raise AssertionError("no reply has these tokens")


def build(model: qwchat.Model, pieces: list[str | int], before: int = 0, **options: Any) -> tuple[list[TextStep], Done]:
    """Return the events of a reply with these texts and token ids; the first `before` tokens are its earlier part."""
    ids = model.tokenizer.encode_prompt(piece if isinstance(piece, str) else [piece] for piece in pieces)
    builder = ReplyBuilder(model.tokenizer, Request(HOT, 1, **options), ids[:before], model.prompt(ASK).reasoning)
    steps = []
    for token in ids[before:]:
        steps += builder.step(TokenStep(token))
        if builder.stopped:
            break
    last = builder.flush()
    return steps + ([last] if last is not None else []), builder.done(Finished("stop", STATS))


def test_the_prompt_tells_how_a_reply_begins(opened: qwchat.Model, switched: qwchat.Model) -> None:
    assert opened.prompt(ASK).reasoning == opened.prompt(ASK, options=PromptOptions(thinking=False)).reasoning == "open"
    assert switched.prompt(ASK).reasoning == "optional"
    assert switched.prompt(ASK, options=PromptOptions(thinking=False)).reasoning == "none"
    empty_block = [OPENING_ID, *switched.encode("\n\n"), CLOSING_ID, *switched.encode("\n\n")]
    assert list(switched.prompt(ASK, options=PromptOptions(thinking=False)).ids)[-len(empty_block) :] == empty_block


def test_a_typed_tag_is_text(opened: qwchat.Model, switched: qwchat.Model) -> None:
    typed: list[Message] = [{"role": "user", "content": "a </think> b <think>"}]
    for model, tags in ((opened, [OPENING_ID]), (switched, [])):
        prompt = model.prompt(typed)
        assert [token for token in prompt.ids if token in (OPENING_ID, CLOSING_ID)] == tags
        assert "a </think> b <think>" in model.decode(prompt.ids)
        replied: list[Message] = [*typed, {"role": "assistant", "content": "c\n</think>\n\nd"}, *typed]
        later = model.prompt(replied)
        assert [token for token in later.ids if token in (OPENING_ID, CLOSING_ID)] == tags
        assert "d" in model.decode(later.ids)
        assert "c\n" not in model.decode(later.ids)
    assert build(switched, ["a <think> b</think>c"])[1].text == "a <think> b</think>c"


@pytest.mark.parametrize("answer", ["\n\nthere", "\n\nthe <|im_end|> or"])
@pytest.mark.parametrize("template", ["opened", "switched"])
def test_thoughts_of_earlier_replies_stay_out_of_the_prompt(
    template: str, answer: str, opened: qwchat.Model, switched: qwchat.Model
) -> None:
    model = {"opened": opened, "switched": switched}[template]
    opening = [] if template == "opened" else [OPENING_ID]
    special = model.tokenizer.special_ids
    turns: list[Message] = []
    for number in range(5):
        turns.append({"role": "user", "content": f"hello {number}"})
        rendered = model.template.render(turns)
        assert "hell\n" not in rendered
        ids = list(model.prompt(turns).ids)
        assert model.decode(ids) == rendered
        if "<|im_end|> or" not in answer:  # Otherwise this is what a tokenizer would do that takes typed tags for tags.
            pieces = re.split(f"({model.tokenizer.control_pattern.pattern})", rendered)
            assert ids == model.tokenizer.encode_prompt([special[each]] if each in special else each for each in pieces)
        assert ids.count(OPENING_ID) == (template == "opened")
        reply = model.tokenizer.encode_prompt([opening, "\nthe hell\n", [CLOSING_ID], f"{answer} {number}"])
        turns.append({"role": "assistant", "content": model.decode(reply), "token_ids": reply})


def test_a_message_with_the_answer_alone_leaves_the_thought_out_too(opened: qwchat.Model) -> None:
    ids = opened.tokenizer.encode_prompt(["the hell", [CLOSING_ID], "there"])
    turns: list[Message] = [*ASK, {"role": "assistant", "content": "there", "token_ids": ids}, *ASK]
    without: list[Message] = [*ASK, {"role": "assistant", "content": "there"}, *ASK]
    assert list(opened.prompt(turns).ids) == list(opened.prompt(without).ids)


def test_the_first_of_several_steps_of_one_token_ends_the_thought(tmp_path: Path) -> None:
    with load(tmp_path, OPENED, tokens=False) as model:
        assert model.prompt(ASK).reasoning == "open"
        steps, end = build(model, ["hell</think>the"])
        assert (end.reasoning, end.text, end.raw_text) == ("hell", "the", "hell</think>the")
        assert sum(step.token_id is not None for step in steps) == len(end.token_ids)
        with pytest.raises(UsageError, match="regex cannot be used with this model: its think tags are not tokens"):
            list(model.chat(ASK, constraint=Constraint.regex("[0-9]+")))


def test_a_model_without_tags_is_not_affected(tmp_path: Path) -> None:
    from qwchat.text.template import CHATML

    with load(tmp_path, CHATML, tokens=False) as model:
        assert model.prompt(ASK).reasoning == "none"
        steps, end = build(model, ["<think>hell</think>the"])
        assert (end.reasoning, end.text, end.raw_text) == ("", "<think>hell</think>the", None)
        assert not any(step.reasoning for step in steps)
        assert end.stats.reasoning_tokens == 0


def test_every_cut_of_a_reply_continues_to_the_same_parts(switched: qwchat.Model) -> None:
    pieces = ["\n", OPENING_ID, "\nhell 漢 END\n", CLOSING_ID, "\n\nthe 漢 END more"]
    steps, whole = build(switched, pieces, stop=("END",))
    assert (whole.reasoning, whole.text) == ("hell 漢 END", "the 漢 ")
    assert whole.raw_text == "\n<think>\nhell 漢 END\n</think>\n\nthe 漢 "
    assert whole.finish_reason == "stop"
    closing = whole.token_ids.index(CLOSING_ID)
    assert whole.stats.reasoning_tokens == closing + 1
    assert [step.reasoning for step in steps[1 : closing + 1]] == [True] * closing
    assert not any(step.reasoning for step in steps[closing + 1 :])
    for before in range(1, len(whole.token_ids)):
        rest, end = build(switched, pieces, before, stop=("END",))
        assert end == whole
        for kind, part in ((True, whole.reasoning), (False, whole.text)):
            assert part.endswith("".join(step.text for step in rest if step.reasoning == kind))


@pytest.mark.parametrize(
    ("pieces", "thought", "answer"),
    [
        ([OPENING_ID, "\n\n", CLOSING_ID, "\n\nthe"], "", "the"),
        ([OPENING_ID, "\nnever closed\n"], "never closed", ""),
        (["the ", OPENING_ID, "a", CLOSING_ID], "", "the <think>a</think>"),
    ],
)
def test_thoughts_may_be_empty_or_never_end(
    switched: qwchat.Model, pieces: list[str | int], thought: str, answer: str
) -> None:
    steps, end = build(switched, pieces)
    assert (end.reasoning, end.text) == (thought, answer)
    assert "".join(step.text for step in steps) == thought + answer
    assert end.content == switched.decode(end.token_ids)


def test_generated_replies_are_split_and_resumed(opened: qwchat.Model) -> None:
    seed = seed_with(opened, CLOSING_ID)
    _, whole = events_of(opened, ASK, seed=seed, max_tokens=80)
    assert whole.raw_text == opened.decode(whole.token_ids)
    assert (whole.reasoning, whole.text) == split_reply(whole.raw_text)
    closing = whole.token_ids.index(CLOSING_ID)
    assert whole.stats.reasoning_tokens == closing + 1
    for cut in (1, closing, closing + 1, closing + 5):
        _, part = events_of(opened, ASK, seed=seed, max_tokens=cut)
        begun: list[Message] = [*ASK, {"role": "assistant", "content": part.content, "token_ids": part.token_ids}]
        events = list(opened.chat(begun, settings=HOT, seed=seed, max_tokens=80 - cut, continuing=True))
        end = events[-1]
        assert isinstance(end, Done)
        assert (end.reasoning, end.text, end.raw_text) == (whole.reasoning, whole.text, whole.raw_text)
        assert end.stats.reasoning_tokens == closing + 1


@pytest.mark.parametrize("speculate", [False, True])
def test_a_constraint_begins_after_the_thought(speculate: bool, opened: qwchat.Model, switched: qwchat.Model) -> None:
    digits = Constraint.regex("[0-9]{3}")
    for model in (opened, switched):
        for seed in range(60):
            _, end = events_of(model, ASK, seed=seed, max_tokens=200, constraint=digits, speculate=speculate)
            assert end.meets_constraint == (len(end.text) == 3)
            assert end.text == "" or (end.text.isdecimal() and end.meets_constraint)
            assert end.token_ids[-1] not in model.stop_ids
            if end.reasoning and end.text:
                break
            assert model is switched or end.finish_reason == "length"
        else:
            raise AssertionError("no reply has both parts")
    assert end.raw_text is not None
    assert end.raw_text.endswith(CLOSING_TAG + end.text)
    assert end.raw_text.startswith(OPENING_TAG)
    cut = end.token_ids[: end.stats.reasoning_tokens - 1]
    begun: list[Message] = [*ASK, {"role": "assistant", "content": switched.decode(cut), "token_ids": cut}]
    assert switched.mask_factory.mask(digits, cut, "optional").forced_tokens() == []
    rest = list(switched.chat(begun, settings=HOT, seed=seed, constraint=digits, continuing=True, max_tokens=200))[-1]
    assert isinstance(rest, Done)
    assert rest.token_ids == end.token_ids


def test_without_thinking_a_constraint_is_enforced_from_the_start(switched: qwchat.Model) -> None:
    options = PromptOptions(thinking=False)
    _, end = events_of(switched, ASK, seed=1, constraint=Constraint.choices(["hello"]), options=options)
    assert (end.text, end.reasoning, end.raw_text, end.meets_constraint) == ("hello", "", None, True)


def test_a_prompt_without_a_template_has_no_thought(opened: qwchat.Model) -> None:
    events = list(opened.generate([*opened.encode("hell"), OPENING_ID], settings=HOT, seed=2, max_tokens=9))
    end = events[-1]
    assert isinstance(end, Done)
    assert (end.reasoning, end.raw_text, end.text) == ("", None, opened.decode(end.token_ids))


def test_a_reply_without_token_ids_continues_within_its_thought(opened: qwchat.Model) -> None:
    begun: list[Message] = [*ASK, {"role": "assistant", "content": "hell</think>the"}]
    prompt = build_prompt(opened.tokenizer, opened.template, begun, continuing=True)
    assert prompt.reasoning == "open"
    events = list(opened.stream(prompt, Request(HOT, 3, max_tokens=4)))
    end = events[-1]
    assert isinstance(end, Done)
    assert end.reasoning == "hell"
    assert end.text.startswith("the")
