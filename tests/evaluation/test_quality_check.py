"""The comparison of a converted model with its source: the divergence that two whole models have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quant
import qwchat
from quant.container import open_model
from quant.sources import open_source
from qwchat.cpu import memory
from qwchat.errors import ModelError, NonFiniteLogitsError, NotEnoughMemoryError
from qwchat.evaluation import check_texts as texts_module
from qwchat.evaluation.check_texts import LEAST_TOKENS, MOST_TOKENS, EncodedTexts, check_texts, token_budget
from qwchat.evaluation.comparison import Scores
from qwchat.evaluation.quality_check import compare_with_source, summarise_scores
from qwchat.models_folder import embedded_checkpoint
from tests.quant.checkpoints import make_checkpoint

VOCAB = 4096


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for preset in ("q4", "dense"):
        list(quant.convert(embedded_checkpoint(), folder / preset, preset=preset))
    return folder


def compare(folder: Path, texts: EncodedTexts, threads: int = 1) -> Scores:
    with open_source(embedded_checkpoint()) as source:
        return compare_with_source(
            source, open_model(folder), texts, threads=threads, progress=lambda done, steps: None
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_the_figures_are_those_of_two_whole_models(models: Path) -> None:
    texts = check_texts(models / "q4", VOCAB, None, 400)
    assert [len(ids) for ids in texts.ids] == [67] * 6
    found = compare(models / "q4", texts)
    divergences, tops = [], []
    with (
        qwchat.load(models / "q4", threads=1, context=256, kv="f32", verify=False) as model,
        qwchat.load(models / "dense", threads=1, context=256, kv="f32", verify=False) as dense,
    ):
        for ids in texts.ids:
            own, other = (
                log_softmax(each.logits(ids.tolist())[:-1, : model.tokenizer.vocab_size]) for each in (model, dense)
            )
            divergences.append((np.exp(other) * (other - own)).sum(axis=1))
            tops.append(own.argmax(axis=1) == other.argmax(axis=1))
    divergence, same = np.concatenate(divergences), np.concatenate(tops)
    np.testing.assert_allclose(found.divergence, divergence, rtol=1e-4, atol=1e-6)
    assert np.array_equal(found.same_top, same)
    quality = summarise_scores(found, texts.name)
    assert quality.kl_mean == pytest.approx(divergence.mean(), rel=1e-3)
    assert quality.kl_p999 == pytest.approx(np.quantile(divergence, 0.999), rel=1e-3)
    assert (quality.tokens, quality.text) == (66 * 6, texts_module.NAME)
    assert 0.5 < quality.same_top < 1


def test_an_unquantised_model_is_its_source_for_any_number_of_threads(models: Path) -> None:
    texts = check_texts(models / "dense", VOCAB, None, 128)
    assert not compare(models / "dense", texts).divergence.any()
    assert np.array_equal(compare(models / "q4", texts, 1).divergence, compare(models / "q4", texts, 2).divergence)


def test_progress_ends_with_the_last_step(models: Path) -> None:
    seen: list[tuple[int, int]] = []
    with open_source(embedded_checkpoint()) as source:
        texts = check_texts(models / "q4", VOCAB, None, 128)
        compare_with_source(
            source, open_model(models / "q4"), texts, threads=1, progress=lambda *step: seen.append(step)
        )
    assert [done for done, _ in seen] == list(range(1, source.config.num_layers + 3))
    assert {steps for _, steps in seen} == {seen[-1][0]}


def test_too_little_memory_is_noticed_before_anything_is_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)
    with pytest.raises(NotEnoughMemoryError, match="comparing the model with its source needs"):
        compare(models / "q4", check_texts(models / "q4", VOCAB, None, 128))


def test_logits_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1}

    def overflow(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"][:] = 9e29
        tensors["lm_head.weight"][:] = 9e29

    make_checkpoint(tmp_path / "source", config_overrides=sizes, edit=overflow)
    list(quant.convert(tmp_path / "source", tmp_path / "model"))
    texts = check_texts(tmp_path / "model", 320, None, 128)
    with open_source(tmp_path / "source") as source, pytest.raises(NonFiniteLogitsError):
        compare_with_source(source, open_model(tmp_path / "model"), texts, threads=1, progress=lambda done, steps: None)


@pytest.mark.parametrize(
    ("parameters", "tokens"), [(1, MOST_TOKENS), (100_000_000, 600), (7_600_000_000, LEAST_TOKENS)]
)
def test_large_models_are_compared_on_fewer_tokens(parameters: int, tokens: int) -> None:
    assert token_budget(parameters) == tokens


@pytest.mark.parametrize(("tokens", "count"), [(10, 1), (128, 2), (256, 4), (1536, 6)])
def test_few_tokens_are_those_of_the_first_texts(models: Path, tokens: int, count: int) -> None:
    everything = check_texts(models / "q4", VOCAB, None, 1 << 20).ids
    found = check_texts(models / "q4", VOCAB, None, tokens).ids
    assert len(found) == count
    assert tokens <= sum(map(len, found)) <= tokens + count
    for ids, whole in zip(found, everything, strict=False):
        assert np.array_equal(ids, whole[: len(ids)])


def test_the_texts_are_several_kinds(models: Path) -> None:
    tokens = qwchat.text.tokenizer.Tokenizer.from_folder(models / "q4", None, VOCAB)
    texts = [tokens.decode(ids.tolist()) for ids in check_texts(models / "q4", VOCAB, None, 1 << 20).ids]
    assert "<|im_start|>user\nI have 24 apples" in texts[0]
    assert "def load_readings" in texts[2]
    assert "长江" in texts[3]
    assert all(len(text) > 500 for text in texts)


def test_a_broken_template_is_a_model_error(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        check_texts(tmp_path, VOCAB, None, 128)
