"""The loss of `qwchat perplexity` is that of transformers."""

from __future__ import annotations

import math
from pathlib import Path

import quant
import qwchat
from qwchat.evaluation.documents import text_document
from qwchat.evaluation.scoring import Evaluation
from tests.oracle.reference import torch, transformers

MINI = Path(__file__).resolve().parents[2] / "models" / "mini"
TEXT = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")[:2000]
WINDOW = 1024


def test_the_loss_of_a_dense_model_is_that_of_transformers(tmp_path: Path) -> None:
    list(quant.convert(MINI, tmp_path / "model", preset="dense"))
    with qwchat.load(tmp_path / "model", context=WINDOW, kv="f32") as model:
        document = text_document(model, TEXT, 0)
        assert 100 < len(document.ids) <= WINDOW
        evaluation = Evaluation(model, None, WINDOW)
        list(evaluation.add(document, whole=True))
        found = evaluation.figures()
    reference = transformers.AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(MINI)(TEXT, return_tensors="pt").input_ids
    assert ids[0].tolist() == document.ids.tolist()
    with torch.no_grad():
        loss = float(reference(ids, labels=ids).loss)
    assert abs(found.loss - loss) <= 1e-4
    assert math.isclose(found.perplexity.value, math.exp(loss), rel_tol=1e-4)
