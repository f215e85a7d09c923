"""The benchmark of constrained decoding accepts its texts, whatever is sampled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import qwchat
from benchmarks.constrained import Round, loss_of, tasks
from quant import convert
from tests.quant.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    folder = tmp_path_factory.mktemp("bench")
    make_checkpoint(folder / "tiny", config_overrides={"hidden_size": 128, "max_position_embeddings": 1024})
    list(convert(folder / "tiny", folder / "tiny-q4"))
    with qwchat.load(folder / "tiny-q4", threads=1, context=1024) as loaded:
        yield loaded


@pytest.mark.parametrize("name", tasks())
def test_the_texts_meet_their_constraints(name: str) -> None:
    task = tasks()[name]
    assert task.constraint.fits(task.text)


@pytest.mark.slow
def test_a_round_accepts_the_text_and_times_it(model: qwchat.Model, capsys: pytest.CaptureFixture[str]) -> None:
    task = tasks()["schema"]
    prompt = model.encode("hello")
    found = Round(model, task, prompt, 1)
    assert model.decode(model.cached_ids[len(prompt) :].tolist()) != task.text[:-1]  # The unconstrained half was last.
    found = Round(model, task, prompt, 0)
    assert task.text.startswith(model.decode(model.cached_ids[len(prompt) :].tolist()))
    assert len(found.masks) == len(model.encode(task.text))
    assert (found.masks > 0).all()
    assert np.isfinite(found.sampling()).all()
    assert 0 < loss_of(model, task, prompt, 1, "schema") < 1
    assert capsys.readouterr().out.startswith("schema ")
