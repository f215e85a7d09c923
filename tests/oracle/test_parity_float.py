"""Logits of dense models, compared with transformers in float32, for random models fed in any order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.oracle.engine import any_chunks, converted, feed, loaded, one_pass, token_by_token
from tests.oracle.reference import CASES, QWEN3_CASES, Case, distance, reference_logits, torch, uses_yarn

TOLERANCE = 1e-4
"""Of the largest logit."""
SAME = 1e-5
"""The same between our own orders of feeding, where no key bias is an outlier."""


@dataclass(frozen=True)
class Prepared:
    """A case with its converted model and the results of transformers."""

    case: Case
    folder: Path
    token_ids: list[int]
    reference: np.ndarray
    bound: float


@pytest.fixture(scope="module", params=[*CASES, *QWEN3_CASES], ids=lambda case: case.name)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Yield each case; where key biases are outliers, float64 shows how far float32 can be trusted."""
    case: Case = request.param
    work = tmp_path_factory.mktemp(f"case{case.number}")
    source = case.write(work / "checkpoint")
    token_ids = case.token_ids()
    reference = reference_logits(source, token_ids)
    bound = TOLERANCE
    if case.k_bias_norm is not None:
        bound = max(bound, 2 * distance(reference, reference_logits(source, token_ids, torch.float64)))
    return Prepared(case, converted(source, work / "model", preset="dense"), token_ids, reference, bound)


def test_one_pass(prepared: Prepared) -> None:
    with loaded(prepared.folder, len(prepared.token_ids)) as engine:
        logits = feed(engine, prepared.token_ids, one_pass(len(prepared.token_ids)))
    assert logits.shape == prepared.reference.shape
    assert distance(logits, prepared.reference) <= prepared.bound


def test_any_order_of_feeding(prepared: Prepared) -> None:
    """Check decoding, chunks of any size, and truncation after other tokens were fed."""
    token_ids, seed = prepared.token_ids, prepared.case.number
    length = len(token_ids)
    with loaded(prepared.folder, length) as engine:
        whole = feed(engine, token_ids, one_pass(length))
        orders = {"chunks": feed(engine, token_ids, any_chunks(length, seed))}
        if length <= 257:
            orders["token by token"] = feed(engine, token_ids, token_by_token(length))
        kept = np.random.default_rng(seed).integers(length)
        feed(engine, token_ids[::-1][: length - kept], any_chunks(length - kept, seed), kept)
        refed = feed(engine, token_ids[kept:], any_chunks(length - kept, seed + 1), kept)
        orders["truncated and fed again"] = np.concatenate([whole[:kept], refed])
    same = SAME if prepared.case.k_bias_norm is None else prepared.bound
    for name, logits in orders.items():
        assert distance(logits, whole) <= same, name
        assert distance(logits, prepared.reference) <= prepared.bound, name


def test_the_cases_cover_the_family() -> None:
    """Check the properties of the random models that the documentation claims."""
    values = [case.overrides for case in CASES]
    ratios = [entry["num_attention_heads"] // entry["num_key_value_heads"] for entry in values]
    assert len(CASES) >= 40
    assert set(zip(ratios, (entry["head_dim"] for entry in values), strict=True)) == set(
        product((1, 6, 7, 8), (64, 128))
    )
    assert set(zip(ratios, (entry["tie_word_embeddings"] for entry in values), strict=True)) == set(
        product((1, 6, 7, 8), (True, False))
    )
    faint = {entry["rms_norm_eps"] for entry, case in zip(values, CASES, strict=True) if case.faint}
    assert faint == {1e-5, 1e-6}
    yarn = [uses_yarn(case) for case in CASES]
    assert set(zip(yarn, (case.k_bias_norm for case in CASES), strict=True)) == set(
        product((True, False), (None, 100.0, 900.0))
    )
    assert set(zip(yarn, (entry["rms_norm_eps"] for entry in values), strict=True)) == set(
        product((True, False), (1e-5, 1e-6))
    )
    assert {case.length for case in CASES} >= {1, 2, 127, 128, 129, 3000}
    assert {(uses_yarn(case), case.length) for case in CASES} >= {(True, 3000), (False, 3000)}


def test_the_cases_of_qwen3_have_heads_of_another_width() -> None:
    """Check ratios of heads, and tied and untied heads.

    The heads together are never as wide as the residual stream.
    """
    values = [case.overrides for case in QWEN3_CASES]
    widths = [(entry["num_attention_heads"] * entry["head_dim"], entry["hidden_size"]) for entry in values]
    assert len(values) >= 24
    assert all(heads != hidden for heads, hidden in widths)
    assert {heads > hidden for heads, hidden in widths} == {True, False}
    ratios = [entry["num_attention_heads"] // entry["num_key_value_heads"] for entry in values]
    assert set(zip(ratios, (entry["tie_word_embeddings"] for entry in values), strict=True)) == set(
        product((1, 6, 7, 8), (True, False))
    )
    assert {uses_yarn(case) for case in QWEN3_CASES} == {True, False}
    assert max(case.length for case in QWEN3_CASES) == 3000
