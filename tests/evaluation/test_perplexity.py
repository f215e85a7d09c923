"""`qwchat perplexity` on the built-in model and its unquantised conversion."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import quant
import qwchat
from qwchat.cli.app import run_app
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.guard import run_guarded
from qwchat.errors import PromptTooLongError, UsageError
from qwchat.evaluation.documents import Document, parse_conversations, read_text, reply_documents, text_document
from qwchat.evaluation.scoring import Evaluation, check_same_tokens
from qwchat.models_folder import embedded_checkpoint
from tests.cli.runs import call

TEXT = "`qwchat -p` prints one reply. Quantisation stores weights with fewer bits, in groups that share a scale.\n"
TALK: list[dict[str, str]] = [
    {"role": "user", "content": "What is 7 + 8?"},
    {"role": "assistant", "content": "7 + 8 = 15."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "You are welcome."},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for preset in ("q4", "dense"):
        list(quant.convert(embedded_checkpoint(), folder / preset, preset=preset))
    return folder


def opened(folder: Path, context: int = 256) -> qwchat.Model:
    return qwchat.load(folder, threads=1, context=context, kv="f32", verify=False)


def losses(model: qwchat.Model, ids: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood of every token but the first, from one pass."""
    logits = model.logits(ids.tolist())[:-1, : model.tokenizer.vocab_size].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def run(*arguments: str, models: Path, stdin: bytes = b"") -> tuple[int, str]:
    """Run `qwchat perplexity` with the real engine in this process; return exit code and standard output."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    streams = {"stdin": io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"), "stdout": out, "stderr": err}
    with mock.patch.multiple(sys, **streams), mock.patch.dict(os.environ, QWCHAT_MODELS=str(models)):
        code = run_guarded(lambda: run_app(("perplexity", *arguments), Dependencies()), debug=False)
    out.flush()
    return code, out.buffer.getvalue().decode()


def test_a_text_within_a_window_has_the_loss_of_one_pass(models: Path) -> None:
    with opened(models / "q4") as model:
        document = text_document(model, TEXT * 3, 0)
        expected = losses(model, document.ids)
        evaluation = Evaluation(model, None, 256)
        assert list(evaluation.add(document, whole=False)) == [len(document.ids)]
        found = evaluation.figures()
    assert found.tokens == len(document.ids) - 1
    assert math.isclose(found.loss, expected.mean(), rel_tol=1e-6)
    assert math.isclose(found.perplexity.value, math.exp(expected.mean()), rel_tol=1e-5)


def test_windows_predict_each_token_from_their_own_text(models: Path) -> None:
    with opened(models / "q4") as model:
        document = text_document(model, TEXT * 6, 0)
        size = 64
        expected = list(losses(model, document.ids[:size]))
        start = size // 2
        while len(expected) < len(document.ids) - 1:
            piece = document.ids[start : start + size]
            expected += list(losses(model, piece)[size // 2 - 1 :])
            start += size // 2
        evaluation = Evaluation(model, None, size)
        list(evaluation.add(document, whole=False))
        found = evaluation.figures()
    assert found.tokens == len(document.ids) - 1
    assert math.isclose(found.loss, float(np.mean(expected)), rel_tol=1e-6)


def test_replies_of_a_conversation_count_alone(models: Path) -> None:
    with opened(models / "q4") as model:
        documents = list(reply_documents(model, TALK, 4))  # type: ignore[arg-type]
        assert [model.decode(document.ids[document.first_scored :].tolist()) for document in documents] == [
            "7 + 8 = 15.",
            "You are welcome.",
        ]
        assert [document.source for document in documents] == [4, 4]
        prompt = model.prompt(TALK[:3])  # type: ignore[arg-type]
        assert documents[1].ids[: documents[1].first_scored].tolist() == list(prompt.ids)
        evaluation = Evaluation(model, None, 256)
        for document in documents:
            list(evaluation.add(document, whole=True))
        found = evaluation.figures()
        by_hand = [losses(model, document.ids)[document.first_scored - 1 :] for document in documents]
    assert found.documents == 1
    assert math.isclose(found.loss, np.concatenate(by_hand).mean(), rel_tol=1e-6)


def test_a_conversation_must_fit(models: Path) -> None:
    with opened(models / "q4") as model:
        (document, *_) = reply_documents(model, TALK, 0)  # type: ignore[arg-type]
        with pytest.raises(PromptTooLongError):
            list(Evaluation(model, None, 16).add(document, whole=True))


def test_a_single_token_predicts_nothing(models: Path) -> None:
    with opened(models / "q4") as model:
        evaluation = Evaluation(model, None, 64)
        assert list(evaluation.add(Document(np.array([5]), 1, 1, 0), whole=False)) == []
        with pytest.raises(UsageError, match="has no token to predict"):
            evaluation.figures()
        check_same_tokens(model, model)


def test_json_has_every_figure(models: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 12)
    arguments = ("q4", str(text), "--against", "dense", "--ctx", "32", "--json", "--threads", "1")
    code, out = run(*arguments, models=models)
    assert code == ExitCode.OK
    found = json.loads(out)
    assert found["model"]["preset"] == "q4"
    assert found["window"] == 32
    assert found["documents"] == 1
    assert found["blocks"] >= 8
    against = found["against"]
    assert against["model"]["preset"] == "dense"
    low, high = found["perplexity"]["interval"]
    assert low < found["perplexity"]["value"] < high
    assert 0 <= against["median"] <= against["percentile_99"] <= against["percentile_99_9"] <= against["largest"]
    assert 0 < against["mean"]["value"] < 1
    assert 0.5 < against["same_top"]["value"] <= 1
    ratio = found["perplexity"]["value"] / against["reference_perplexity"]
    assert math.isclose(against["perplexity_ratio"]["value"], ratio, rel_tol=1e-9)


def test_the_table_reads_standard_input(models: Path) -> None:
    code, out = run("q4", "-", "--threads", "1", models=models, stdin=(TEXT * 2).encode())
    assert code == ExitCode.OK
    lines = out.splitlines()
    assert lines[0].startswith("q4: ")
    assert " tokens of 1 document, windows of 1,024" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["perplexity", "loss"]
    assert "against" not in out


def test_conversations_are_json_lines() -> None:
    line = json.dumps({"messages": TALK})
    assert parse_conversations(f"{line}\n\n{line}\n", "x") == [TALK, TALK]
    for bad, message in (
        ("{", "x, line 1 is not JSON: give one conversation per line"),
        ("[" * 100_000, "x, line 1 is not JSON: give one conversation per line"),
        ("[]", 'x, line 1 has no "messages": give {"messages": [{"role": …, "content": …}]}'),
        ('{"messages": []}', 'x, line 1 has no "messages": give {"messages": [{"role": …, "content": …}]}'),
        ('{"messages": [1]}', "x, line 1 has a message without a role (system, user, assistant) or without text"),
        (
            '{"messages": [{"role": "tool", "content": "x"}]}',
            "x, line 1 has a message without a role (system, user, assistant) or without text",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            parse_conversations(bad, "x")
        assert str(caught.value) == message


def test_texts_must_be_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(file) == "abc"
    for data, message in (
        (b"a\0b", "is a binary file (contains NUL bytes)"),
        (b"ab\xff", "is not UTF-8 text (byte 2)"),
    ):
        file.write_bytes(data)
        with pytest.raises(UsageError) as caught:
            read_text(file)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mini", "nowhere"), "nowhere does not exist; is . the right folder?"),
        (("mini", "-", "-"), "- reads standard input: give it once"),
        (("mini", "-", "--ctx", "8"), "--ctx must be at least 16, not 8"),
        (("mini", "-", "--threads", "0"), "--threads must be from 1"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_opened(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = call("perplexity", *arguments, models=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1
