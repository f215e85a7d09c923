"""The Python API on a converted random model."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qwchat
from quant import convert
from qwchat.constraints import Constraint
from qwchat.cpu import memory
from qwchat.errors import ModelError, NotEnoughMemoryError, PromptTooLongError, SnapshotError, UsageError
from qwchat.events import Done, Prefilled, TextStep
from qwchat.messages import Message
from qwchat.request import SamplingParams
from tests.quant.checkpoints import make_checkpoint

HOT = SamplingParams(temperature=1.5)
GREEDY = SamplingParams()
ASK: list[Message] = [{"role": "user", "content": "hello the hell"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "tiny"
    return make_checkpoint(folder, config_overrides={"hidden_size": 128, "max_position_embeddings": 512})


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Iterator[qwchat.Model]:
    destination = checkpoint.with_name("tiny-q4")
    list(convert(checkpoint, destination))
    with qwchat.load(destination, threads=2) as loaded:
        yield loaded


def reply(model: qwchat.Model, messages: list[Message], **options: object) -> Done:
    events = list(model.chat(messages, **options))  # type: ignore[arg-type]
    end = events[-1]
    assert isinstance(end, Done)
    assert "".join(event.text for event in events if isinstance(event, TextStep)) == end.text
    assert isinstance(events[0], Prefilled)
    return end


def test_the_same_seed_gives_the_same_text_on_any_number_of_threads(model: qwchat.Model) -> None:
    first = reply(model, ASK, settings=HOT, seed=7, max_tokens=60)
    assert reply(model, ASK, settings=HOT, seed=7, max_tokens=60).text == first.text
    assert reply(model, ASK, settings=HOT, seed=8, max_tokens=60).text != first.text
    for threads in (1, 3):
        with qwchat.load(model.folder.path, threads=threads) as other:
            assert reply(other, ASK, settings=HOT, seed=7, max_tokens=60).text == first.text


def test_a_seed_is_chosen_and_reported(model: qwchat.Model) -> None:
    first = reply(model, ASK, settings=HOT, max_tokens=30)
    assert reply(model, ASK, settings=HOT, max_tokens=30, seed=first.seed).text == first.text


def test_a_follow_up_evaluates_only_new_tokens(model: qwchat.Model) -> None:
    first = reply(model, ASK, settings=GREEDY, max_tokens=20)
    turns: list[Message] = [*ASK, {"role": "assistant", "content": first.text, "token_ids": first.token_ids}]
    follow = reply(model, [*turns, {"role": "user", "content": "the other"}], max_tokens=5)
    # The last token of a reply that reached its limit was not evaluated; all others were.
    unread = 1 if first.finish_reason == "length" else 0
    assert follow.stats.cached_tokens == first.stats.prompt_tokens + len(first.token_ids) - unread
    again = reply(model, ASK, settings=GREEDY, max_tokens=20)
    assert again.stats.cached_tokens == again.stats.prompt_tokens - 1
    assert again.token_ids == first.token_ids


@pytest.mark.parametrize("settings", [GREEDY, SamplingParams(temperature=0.2, repeat_penalty=1.1)], ids=str)
def test_speculation_does_not_change_the_output(model: qwchat.Model, settings: SamplingParams) -> None:
    drafted = 0
    for seed in range(4):
        turns: list[Message] = [{"role": "user", "content": "hello the hell " * (3 + seed)}]
        plain = reply(model, turns, settings=settings, seed=seed, max_tokens=120, speculate=False)
        quick = reply(model, turns, settings=settings, seed=seed, max_tokens=120)
        assert (quick.text, quick.token_ids, quick.finish_reason) == (plain.text, plain.token_ids, plain.finish_reason)
        assert plain.stats.drafted_tokens == 0
        stop = plain.text[len(plain.text) // 2 :][:3]
        for speculate in (True, False):
            cut = reply(model, turns, settings=settings, seed=seed, max_tokens=120, speculate=speculate, stop=[stop])
            assert cut.text == plain.text[: plain.text.index(stop)]
        drafted += quick.stats.drafted_tokens
    assert drafted > 0


@pytest.mark.parametrize("kv", ["f32", "q8"])
def test_a_snapshot_saves_the_prefill(model: qwchat.Model, tmp_path: Path, kv: str) -> None:
    turns: list[Message] = [{"role": "user", "content": "hello the hell " * 20}]
    path = model.folder.path
    with qwchat.load(path, kv=kv, threads=1) as writer:
        first = reply(writer, turns, settings=GREEDY, max_tokens=20)
        turns += [
            {"role": "assistant", "content": first.text, "token_ids": first.token_ids},
            {"role": "user", "content": "the other"},
        ]
        held = writer.cached_context.length
        assert writer.save_cache(tmp_path / "kv.snapshot") == (tmp_path / "kv.snapshot").stat().st_size
        expected = reply(writer, turns, settings=GREEDY, max_tokens=30)
    with qwchat.load(path, kv=kv, threads=2, context=400) as reader:
        assert reader.restore_cache(str(tmp_path / "kv.snapshot")) == held
        again = reply(reader, turns, settings=GREEDY, max_tokens=30)
        assert again.token_ids == expected.token_ids
        assert again.stats.cached_tokens == expected.stats.cached_tokens == held
    with qwchat.load(path, kv="q8" if kv == "f32" else "f32") as other:
        with pytest.raises(SnapshotError, match="has another kv than"):
            other.restore_cache(tmp_path / "kv.snapshot")
        assert reply(other, turns, settings=GREEDY, max_tokens=1).stats.cached_tokens == 0


def cut_after(model: qwchat.Model, tokens: int, **options: object) -> Done:
    """Return a reply that is cancelled after this many tokens."""
    count = 0

    def cancel() -> bool:
        return count >= tokens

    for event in model.chat(ASK, cancel=cancel, **options):  # type: ignore[arg-type]
        if isinstance(event, TextStep) and event.token_id is not None:
            count += 1
        elif isinstance(event, Done):
            assert (event.finish_reason, len(event.token_ids)) == ("cancelled", tokens)
            return event
    raise AssertionError("the reply has no end")


def unfinished(done: Done) -> list[Message]:
    return [*ASK, {"role": "assistant", "content": done.text, "token_ids": done.token_ids}]


@pytest.mark.parametrize("speculate", [True, False])
def test_a_cancelled_reply_is_continued_to_the_same_end(model: qwchat.Model, speculate: bool) -> None:
    settings = SamplingParams(temperature=1.2, repeat_penalty=1.1, frequency_penalty=0.2)
    whole = reply(model, ASK, settings=settings, seed=9, max_tokens=60)
    held = whole.text[30:33]  # a stop string whose beginning is held back repeatedly
    stopped = reply(model, ASK, settings=settings, seed=9, max_tokens=60, stop=[held])
    split = 0
    for tokens in range(1, len(stopped.token_ids)):
        cut = cut_after(model, tokens, settings=settings, seed=9, stop=[held], speculate=speculate)
        assert cut.text == model.decode(cut.token_ids)
        split += cut.text.endswith("\ufffd")
        events = list(
            model.chat(
                unfinished(cut),
                settings=settings,
                seed=9,
                stop=[held],
                speculate=speculate,
                max_tokens=60 - tokens,
                continuing=True,
            )
        )
        done = events[-1]
        assert isinstance(done, Done)
        assert (done.text, done.token_ids, done.finish_reason) == (stopped.text, stopped.token_ids, "stop")
        assert done.stats.cached_tokens == done.stats.prompt_tokens - 1
        said = "".join(event.text for event in events if isinstance(event, TextStep))
        assert stopped.text.endswith(said)
    assert split > 0


def test_a_reply_without_token_ids_is_continued_from_its_text(model: qwchat.Model) -> None:
    turns: list[Message] = [*ASK, {"role": "assistant", "content": "hell"}]
    done = list(model.chat(turns, settings=GREEDY, max_tokens=5, continuing=True))[-1]
    assert isinstance(done, Done)
    assert done.text.startswith("hell")
    assert list(done.token_ids[: -done.stats.generated_tokens]) == model.encode("hell")
    assert done.stats.generated_tokens == 5
    for wrong in ([], ASK):
        with pytest.raises(UsageError, match="the last message is not a reply"):
            model.chat(wrong, continuing=True)
    with pytest.raises(UsageError, match="outside this model's vocabulary"):
        list(model.chat([*ASK, {"role": "assistant", "content": "x", "token_ids": [10**6]}], continuing=True))


def test_stop_strings_end_a_reply_and_are_not_part_of_it(model: qwchat.Model) -> None:
    whole = reply(model, ASK, settings=HOT, seed=3, max_tokens=80)
    stop = whole.text[20:24]
    cut = reply(model, ASK, settings=HOT, seed=3, max_tokens=80, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.stats.generated_tokens < whole.stats.generated_tokens
    assert cut.stats.generated_tokens == len(cut.token_ids)


def test_dropping_a_reply_midway_leaves_the_model_usable(model: qwchat.Model) -> None:
    expected = reply(model, ASK, settings=HOT, seed=5, max_tokens=40).text
    for steps in (0, 1, 2, 9):
        events = model.chat(ASK, settings=HOT, seed=5, max_tokens=40)
        for _ in range(steps):
            next(events)
        del events
        assert reply(model, ASK, settings=HOT, seed=5, max_tokens=40).text == expected


def test_generate_continues_text(model: qwchat.Model) -> None:
    ids = model.encode("hello the")
    assert model.decode(ids) == "hello the"
    by_text, by_ids = (list(model.generate(prompt, settings=GREEDY, max_tokens=9))[-1] for prompt in ("hello the", ids))
    assert isinstance(by_text, Done)
    assert isinstance(by_ids, Done)
    assert by_text.token_ids == by_ids.token_ids
    assert model.logits(ids).shape == (len(ids), model.config.vocab_size)


def test_errors(model: qwchat.Model, checkpoint: Path) -> None:
    with pytest.raises(PromptTooLongError):
        reply(model, [{"role": "user", "content": "x " * 600}])
    with pytest.raises(UsageError):
        list(model.generate(""))
    with pytest.raises(ModelError, match="qwchat convert"):
        qwchat.load(checkpoint)
    with pytest.raises(ModelError):
        qwchat.load("no-such-model")


DIGITS = Constraint.regex("[0-9]{3,5}")


def test_a_constraint_shapes_the_reply_and_is_reported(model: qwchat.Model) -> None:
    for speculate in (False, True):
        end = reply(model, ASK, settings=HOT, seed=1, constraint=DIGITS, speculate=speculate)
        assert re.fullmatch("[0-9]{3,5}", end.text)
        assert (end.meets_constraint, end.finish_reason) == (True, "stop")
    cut = reply(model, ASK, settings=HOT, seed=1, constraint=DIGITS, max_tokens=2)
    assert (cut.meets_constraint, cut.finish_reason, len(cut.text)) == (False, "length", 2)
    enough = reply(model, ASK, settings=HOT, seed=1, constraint=DIGITS, max_tokens=3)
    assert enough.meets_constraint
    assert reply(model, ASK, max_tokens=2).meets_constraint is None


def test_constrained_text_never_contains_control_tokens_or_gaps(model: qwchat.Model) -> None:
    bits = model.mask_factory.mask(Constraint.regex(r"(.|\n)*")).allowed()
    allowed = np.flatnonzero(np.unpackbits(bits, count=model.tokenizer.vocab_size, bitorder="little"))
    assert set(allowed) & set(model.tokenizer.special_ids.values()) == model.stop_ids
    assert len(allowed) > 150
    assert all(model.tokenizer.token_bytes(int(each)) for each in allowed)


def test_text_that_is_not_normalised_can_be_forced(model: qwchat.Model) -> None:
    end = reply(model, ASK, constraint=Constraint.choices(["e\u0301 \u212b"]))
    assert (end.text, end.meets_constraint) == ("e\u0301 \u212b", True)


def test_a_stop_string_may_leave_a_constraint_unmet(model: qwchat.Model) -> None:
    end = reply(model, ASK, constraint=Constraint.choices(["hello, the end"]), stop=[","])
    assert (end.text, end.finish_reason, end.meets_constraint) == ("hello", "stop", False)


def test_a_constrained_reply_can_be_continued(model: qwchat.Model) -> None:
    schema = Constraint.json_schema('{"type": "array", "items": {"type": "string"}, "minItems": 4}')
    whole = reply(model, ASK, settings=HOT, seed=4, constraint=schema, max_tokens=60)
    part = whole.token_ids[:9]
    begun: list[Message] = [*ASK, {"role": "assistant", "content": model.decode(part), "token_ids": part}]
    rest = list(model.chat(begun, settings=HOT, seed=4, constraint=schema, max_tokens=51, continuing=True))[-1]
    assert isinstance(rest, Done)
    assert rest.meets_constraint
    assert rest.token_ids == whole.token_ids
    with pytest.raises(
        UsageError, match="the reply so far does not fit regex: start a new reply, or remove the constraint"
    ):
        list(model.chat(begun, constraint=DIGITS, continuing=True))


def test_log_probabilities_come_with_the_tokens(model: qwchat.Model) -> None:
    events = list(model.chat(ASK, settings=HOT, seed=2, max_tokens=6, logprobs=3))
    end = events[-1]
    assert isinstance(end, Done)
    steps = [event for event in events if isinstance(event, TextStep) and event.token_id is not None]
    assert [step.logprob for step in steps] == list(end.logprobs)
    assert [each.token_id for each in end.logprobs] == list(end.token_ids)
    first = end.logprobs[0]
    row = model.logits(model.prompt_ids(ASK))[-1, : model.tokenizer.vocab_size].astype(float)
    expected = row - np.log(np.exp(row).sum())
    assert first.logprob == pytest.approx(expected[first.token_id], abs=1e-4)
    assert [each.token_id for each in first.top] == np.argsort(-row)[:3].tolist()
    assert first.text == model.decode([first.token_id])
    assert reply(model, ASK, max_tokens=2).logprobs == ()
    with pytest.raises(UsageError, match="logprobs must be from 0 to 20, not 21"):
        list(model.chat(ASK, logprobs=21))


def test_a_new_engine_takes_over_the_cached_tokens(checkpoint: Path) -> None:
    destination = checkpoint.with_name("tiny-again-q4")
    list(convert(checkpoint, destination))
    with qwchat.load(destination, threads=2, context=200) as model:
        first = reply(model, ASK, settings=HOT, seed=7, max_tokens=40)
        talk: list[Message] = [*ASK, {"role": "assistant", "content": first.text, "token_ids": first.token_ids}, *ASK]
        held = model.cached_context.length
        with qwchat.load(destination, threads=1, context=400) as other:
            expected = reply(other, talk, settings=HOT, seed=8, max_tokens=40)
        assert model.reconfigure(threads=1, context=400) == 0
        assert (model.threads, model.context, model.kv, model.cached_context.length) == (1, 400, "f32", held)
        assert model.reevaluation_seconds > 0  # decides about the next snapshot
        second = reply(model, talk, settings=HOT, seed=8, max_tokens=40)
        assert second.text == expected.text
        assert second.stats.cached_tokens == held
        held = model.cached_context.length
        assert model.reconfigure(threads=2, context=64) == held - 64
        assert model.cached_context.length == 64
        assert model.reconfigure(kv="q8") == 64
        assert (model.kv, model.cached_context.length) == ("q8", 0)
        exact = reply(model, ASK, settings=GREEDY, max_tokens=2)
        assert model.reconfigure(kv="q8", activations=16) == model.cached_context.length + exact.stats.context_used - 1
        assert (model.activations, model.cached_context.length) == (16, 0)


def test_tokens_to_evaluate_again_are_counted(model: qwchat.Model) -> None:
    first = reply(model, ASK, settings=HOT, seed=7, max_tokens=20)
    talk: list[Message] = [*ASK, {"role": "assistant", "content": first.text, "token_ids": first.token_ids}, *ASK]
    assert model.reevaluated_tokens(model.prompt(talk)) == 0
    assert model.cached(model.prompt(talk)) == model.cached_context.length
    assert model.cached(model.prompt(ASK)) == len(model.prompt_ids(ASK))
    changed: list[Message] = [{"role": "system", "content": "Be brief."}, *talk]
    tokens = model.reevaluated_tokens(model.prompt(changed))
    stats = reply(model, changed, settings=GREEDY, max_tokens=1).stats
    assert tokens == stats.prompt_tokens - stats.cached_tokens > 20
    assert model.reevaluated_tokens(model.prompt(changed)) == 0


def test_a_failed_reconfiguration_keeps_the_old_engine(model: qwchat.Model) -> None:
    before = model.engine, model.cached_context
    with pytest.raises(
        UsageError, match=r"^context must be from 1 to 512 tokens, the maximum of this model, not 4,096$"
    ):
        model.reconfigure(context=4096)
    assert (model.engine, model.cached_context) == before
    assert reply(model, ASK, settings=GREEDY, max_tokens=2).stats.generated_tokens == 2


def test_a_failed_reconfiguration_leaves_no_threads(model: qwchat.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(NotEnoughMemoryError):
        model.reconfigure(context=200, threads=2)
    assert set(threading.enumerate()) <= before
    assert reply(model, ASK, settings=GREEDY, max_tokens=2).stats.generated_tokens == 2
