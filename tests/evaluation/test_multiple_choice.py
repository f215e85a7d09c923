"""Prompts and log-likelihoods of multiple-choice questions on the built-in model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import quant
import qwchat
from qwchat.errors import PromptTooLongError, UsageError
from qwchat.evaluation.choice_files import read_task
from qwchat.evaluation.choice_prompts import Prompts
from qwchat.evaluation.likelihood import Context, LikelihoodScorer, encode_pairs, split_prompt
from qwchat.evaluation.multiple_choice import Answered, answer_all, read_tasks
from qwchat.models_folder import embedded_checkpoint
from tests.evaluation.choice_tasks import write_tasks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    folder = tmp_path_factory.mktemp("models") / "q4"
    list(quant.convert(embedded_checkpoint(), folder))
    with qwchat.load(folder, threads=1, context=512, kv="f32", verify=False) as opened:
        yield opened


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path)


def one_pass(model: qwchat.Model, ids: list[int], tokens: int) -> tuple[float, bool]:
    """Return log-likelihood and greediness of the last tokens, from one pass over the whole text."""
    logits = model.logits(ids)[:-1, : model.tokenizer.vocab_size].astype(np.float64)[-tokens:]
    logits -= logits.max(axis=1, keepdims=True)
    targets = ids[-tokens:]
    total = (logits[np.arange(tokens), targets] - np.log(np.exp(logits).sum(axis=1))).sum()
    return float(total), logits.argmax(axis=1).tolist() == targets


def texts(model: qwchat.Model, task: Path, shots: int, *, chat: bool = False) -> list[tuple[str, list[str]]]:
    """Return the prompt of each question, and the continuations."""
    (read,) = read_tasks([task], shots, None, None)
    found = []
    for question in read.questions:
        context, options = read.prompts(model, question.subject, chat=chat).encode(question)
        found.append((model.decode(context), [model.decode(option) for option in options]))
    return found


def test_prompts_of_mmlu(model: qwchat.Model, tasks: Path) -> None:
    (first, *_) = texts(model, tasks / "elementary_mathematics_test.csv", 2)
    assert first == (
        "The following are multiple choice questions (with answers) about elementary mathematics.\n\n"
        "What is 1 + 1?\nA. 1\nB. 3\nC. 2\nD. 4\nAnswer: C\n\n"
        "What is 3 + 4?\nA. 9\nB. 7\nC. 5\nD. 3\nAnswer: B\n\n"
        "What is 2 + 3?\nA. 4\nB. 5\nC. 6\nD. 7\nAnswer:",
        [" A", " B", " C", " D"],
    )


def test_prompts_of_ceval(model: qwchat.Model, tasks: Path) -> None:
    (first, _) = texts(model, tasks / "law_val.csv", 1)
    assert first == (
        "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
        "一加零等于几？\nA. 一\nB. 二\nC. 三\nD. 四\n答案： A\n\n"
        "一加一等于几？\nA. 一\nB. 二\nC. 三\nD. 四\n答案：",
        [" A", " B", " C", " D"],
    )


def test_prompts_of_json_lines_have_examples_of_their_subject(model: qwchat.Model, tasks: Path) -> None:
    first, second, _ = texts(model, tasks / "plain.jsonl", 1)
    assert first == (
        "Question: Is a model a file?\nAnswer: Yes\n\nQuestion: What does qwchat do?\nAnswer:",
        [" It chats.", " It runs a model on this machine", " Nothing at all"],
    )
    assert second[0] == "Question: What is 1 + 2?\nAnswer: 1 + 2 = 3.\n\nQuestion: What is 7 + 8?\nAnswer:"


def test_prompts_of_the_chat_template(model: qwchat.Model, tasks: Path) -> None:
    (first, *_) = texts(model, tasks / "elementary_mathematics_test.csv", 1, chat=True)
    assert first == (
        "<|im_start|>system\nThe following are multiple choice questions (with answers) about elementary mathematics."
        "\n\n<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?\nA. 1\nB. 3\nC. 2\nD. 4\nAnswer:<|im_end|>\n"
        "<|im_start|>assistant\nC<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 3?\nA. 4\nB. 5\nC. 6\nD. 7\nAnswer:<|im_end|>\n<|im_start|>assistant",
        ["\nA", "\nB", "\nC", "\nD"],
    )


def test_control_tokens_in_questions_stay_text(model: qwchat.Model, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"question": "<|im_end|>", "choices": ["<|im_start|>", "b"], "answer": 0}))
    control = set(model.tokenizer.special_ids.values())
    (question,) = read_task(path).questions
    context, options = Prompts(model, "jsonl", "x", (), chat=False).encode(question)
    assert control.isdisjoint(context + options[0])
    context, options = Prompts(model, "jsonl", "x", (), chat=True).encode(question)
    plain = model.prompt_ids([{"role": "user", "content": "Hi"}])
    assert [each for each in context if each in control] == [each for each in plain if each in control]
    assert control.isdisjoint(options[0])


def test_white_space_at_the_end_belongs_to_the_continuation(model: qwchat.Model) -> None:
    before, (after,) = encode_pairs(model.tokenizer, Context((), "one \n "), ["two"])
    assert (model.decode(before), model.decode(after)) == ("one", " \n two")
    ids = model.prompt_ids([{"role": "user", "content": "Hi <|im_end|>"}])
    context = split_prompt(model.tokenizer, ids)
    assert context.tail == "assistant\n"
    assert [*context.head, *model.encode(context.tail)] == ids


@pytest.mark.parametrize("chat", [False, True])
def test_likelihoods_are_those_of_one_pass(model: qwchat.Model, tasks: Path, chat: bool) -> None:
    (task,) = read_tasks([tasks / "plain.jsonl"], 1, None, None)
    for found in answer_all(model, [task], chat=chat):
        question = task.questions[found.index]
        context, options = task.prompts(model, question.subject, chat=chat).encode(question)
        expected = [one_pass(model, context + option, len(option)) for option in options]
        assert found.answer.log_likelihoods == pytest.approx([total for total, _ in expected], abs=2e-3)
        assert list(found.answer.greedy) == [greedy for _, greedy in expected]


def test_long_continuations_are_scored_in_pieces(model: qwchat.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = model.encode("The meeting is on Monday. " * 8)
    (whole,) = LikelihoodScorer(model).score(ids[:3], [ids[3:]])
    assert whole.total == pytest.approx(one_pass(model, ids, len(ids) - 3)[0], abs=2e-2)
    monkeypatch.setattr("qwchat.evaluation.likelihood._LOGITS_BYTES", 4 * 7 * model.config.vocab_size)
    (pieces,) = LikelihoodScorer(model).score(ids[:3], [ids[3:]])
    assert pieces.total == pytest.approx(whole.total, abs=2e-2)
    assert len(model.cached_ids) == len(ids) - 1


def test_shared_tokens_are_evaluated_once(model: qwchat.Model, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = read_tasks([tasks / "elementary_mathematics_test.csv"], 3, None, None)
    prompts = task.prompts(model, "elementary_mathematics", chat=False)
    lengths = [len(prompts.encode(question)[0]) for question in task.questions]
    shared = len(prompts.shared(task.questions[0]))
    evaluated = []
    run_rows = type(model.cached_context).evaluate

    def counted(self, ids, *arguments, **named):  # type: ignore[no-untyped-def]
        evaluated.append(len(ids))
        return run_rows(self, ids, *arguments, **named)

    monkeypatch.setattr(type(model.cached_context), "evaluate", counted)
    assert len(list(answer_all(model, [task], chat=False))) == 3
    assert shared > 100
    assert sum(evaluated) <= shared + sum(length - shared + 3 for length in lengths)


def test_an_answer_does_not_depend_on_the_questions_before(model: qwchat.Model, tasks: Path) -> None:
    read = read_tasks(sorted(tasks.iterdir()), 1, None, None)
    whole = list(answer_all(model, read, chat=False))
    assert len(whole) == 8
    keys = [(each.task, each.index) for each in whole]
    for number, each in enumerate(whole):
        alone: Answered = next(answer_all(model, read, [key for key in keys if key != keys[number]], chat=False))
        assert alone == each


def test_limits_and_examples(tasks: Path) -> None:
    (task,) = read_tasks([tasks / "elementary_mathematics_test.csv"], 0, None, 2)
    assert (len(task.questions), task.examples) == (2, None)
    folder = tasks.parent / "dev"
    for given in (None, folder, folder / "elementary_mathematics_dev.csv"):
        (task,) = read_tasks([tasks / "elementary_mathematics_test.csv"], 2, given, None)
        assert task.examples is not None
        assert task.examples.path == folder / "elementary_mathematics_dev.csv"
    for path, given, message in (
        (tasks / "law_val.csv", tasks, "there is no law_dev.csv with examples for "),
        (tasks / "law_val.csv", folder / "plain_dev.jsonl", "has another form than"),
        (tasks / "law_val.csv", tasks / "law_val.csv", "has the questions that are asked"),
        (tasks / "law_val.csv", folder / "nowhere.csv", "does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            read_tasks([path], 1, given, None)


def test_a_prompt_must_have_its_examples_and_fit(model: qwchat.Model, tasks: Path, tmp_path: Path) -> None:
    read = read_tasks([tasks / "law_val.csv"], 2, None, None)
    with pytest.raises(UsageError, match=r"law_dev.csv has 1 examples, fewer than shots=2"):
        next(answer_all(model, read, chat=False))
    path = tmp_path / "long.jsonl"
    lines = [{"question": text, "choices": ["a", "b"], "answer": 0} for text in ("short", "word " * 600)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(PromptTooLongError) as caught:
        next(answer_all(model, read_tasks([path], 0, None, None), chat=False))
    assert f"{path}, line 2: question and examples have" in str(caught.value)
    with pytest.raises(PromptTooLongError):
        LikelihoodScorer(model).score([1] * 500, [[2] * 14])
