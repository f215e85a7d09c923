"""The kernels that choose candidate tokens, interpreted from the committed PTX, against NumPy and the sampler."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.cuda.manifest import TARGETS, kernels, ptx_text
from qwchat.generation.sampling import Sampler, log_probabilities
from qwchat.request import SamplingParams
from tests.cuda.interpreter import Kernel, Memory
from tests.tiers import count

PART, MOST = 4096, 64
KERNELS: dict[tuple[str, int], Kernel] = {}


def launch(name: str, target: int, memory: Memory, grid: int, arguments: dict, seed: int = 0) -> None:
    record = kernels()[name]
    if (name, target) not in KERNELS:
        KERNELS[name, target] = Kernel(ptx_text(record.unit, target), name)
    ordered = [arguments[parameter] for parameter, _ in record.parameters]
    KERNELS[name, target].run(memory, grid, record.threads, *ordered, seed=seed)


def candidates(
    logits: np.ndarray, k: int, target: int = 90, allowed: np.ndarray | None = None, seed: int = 0, captured: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, ids and summaries of rows of logits (rows, vocab); run twice, which must not change them."""
    rows, vocab = logits.shape
    stride, parts, words = -(-vocab // 16) * 16, -(-vocab // PART), -(-vocab // 32)
    padded = np.full((rows, stride), 1e30, np.float32)
    padded[:, :vocab] = logits
    launched = captured or rows
    memory = Memory()
    outputs = [np.full((launched, size), np.nan, np.float32) for size in (MOST, 4)]
    arguments = {
        "step": memory.place(np.array([rows + 2, 5, 2, 0, 0, 0, 0, 0], np.int32)),
        "logits": memory.place(padded),
        "allowed": 0,
        "lists": memory.place(np.full((launched, parts, MOST, 2), 0xFFFFFFFF, np.uint32)),
        "sums": memory.place(np.full((launched, parts, 4), np.nan, np.float32)),
        "arrivals": memory.place(np.zeros(launched, np.int32)),
        "values": memory.place(outputs[0]),
        "ids": memory.place(np.full((launched, MOST), -7, np.int32)),
        "summaries": memory.place(outputs[1]),
        "stride": stride,
        "vocab": vocab,
        "words": words,
        "parts": parts,
        "k": k,
    }
    if allowed is not None:
        bits = np.zeros((rows, words * 4), np.uint8)
        bits[:, : -(-vocab // 8)] = np.packbits(allowed, axis=1, bitorder="little")
        arguments["allowed"] = memory.place(bits)
    found = []
    for attempt in range(2):
        launch("candidates", target, memory, launched * parts, arguments, seed + attempt)
        assert not memory.back(arguments["arrivals"], np.int32).any()
        values = memory.back(arguments["values"], np.float32, (launched, MOST)).copy()
        ids = memory.back(arguments["ids"], np.int32, (launched, MOST)).copy()
        found.append((values, ids, memory.back(arguments["summaries"], np.float32, (launched, 4)).copy()))
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)
    return found[0]


def check(logits: np.ndarray, k: int, target: int, allowed: np.ndarray | None = None, seed: int = 0) -> None:
    values, ids, summaries = candidates(logits, k, target, allowed, seed)
    for row, scores in enumerate(logits):
        usable = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed[row])
        number = min(k, len(usable))
        best = usable[np.argsort(-scores[usable], kind="stable")[:number]]
        np.testing.assert_array_equal(ids[row, :number], best)
        np.testing.assert_array_equal(values[row, :number], scores[best])
        assert (ids[row, number:] == -1).all()
        assert (values[row, number:] == -np.inf).all()
        largest, total, strange, found = summaries[row]
        assert (largest, strange, found) == (scores.max(), 0, number)
        wanted = np.log(np.exp(scores.astype(np.float64) - largest).sum()) + largest
        assert total == pytest.approx(wanted, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("vocab", "k"), [(1, 1), (17, 64), (4096, 1), (4097, 40), (9000, 64)])
def test_the_largest_logits_are_found(vocab: int, k: int, target: int) -> None:
    random = np.random.default_rng(vocab)
    check((random.normal(size=(2, vocab)) * 5).astype(np.float32), k, target)


def test_a_vocabulary_of_qwen() -> None:
    random = np.random.default_rng(3)
    check((random.normal(size=(count(8, 1), 151_936)) * 3).astype(np.float32), 64, 80)


@pytest.mark.parametrize("k", [1, 7, 64])
def test_of_equal_logits_the_lowest_ids_are_taken(k: int) -> None:
    random = np.random.default_rng(k)
    logits = random.integers(-2, 3, (3, 8500)).astype(np.float32)
    logits[1] = 0
    logits[1, ::2] = -0.0
    logits[2] = -np.arange(8500) // 50
    check(logits, k, 90, seed=5)


@pytest.mark.parametrize("share", [0.0, 0.0003, 0.5])
def test_ids_that_a_constraint_excludes_are_left_out(share: float) -> None:
    random = np.random.default_rng(8)
    logits = (random.normal(size=(2, 5003)) * 4).astype(np.float32)
    allowed = random.random(logits.shape) < share
    allowed[0, 5002] = share > 0
    check(logits, 20, 75, allowed)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_counted(number: float) -> None:
    logits = np.random.default_rng(1).normal(size=(2, 4500)).astype(np.float32)
    logits[1, [7, 4400]] = number
    summaries = candidates(logits, 5)[2]
    assert [*summaries[:, 2]] == [0, 2]


def test_every_bit_pattern_of_nan_is_survived() -> None:
    logits = np.full((1, 4500), 0x7FFFFFFF, np.uint32).view(np.float32)
    assert candidates(logits, 5)[2][0, 2] == 4500


def test_rows_that_are_not_wanted_are_left_alone() -> None:
    logits = np.random.default_rng(2).normal(size=(1, 300)).astype(np.float32)
    values, ids, summaries = candidates(logits, 3, captured=4)
    assert np.isnan(values[1:]).all()
    assert (ids[1:] == -7).all()
    assert np.isnan(summaries[1:]).all()


def test_the_sampler_chooses_among_the_candidates() -> None:
    random = np.random.default_rng(4)
    logits = (random.normal(size=(1, 6000)) * 4).astype(np.float32)
    values, ids, summaries = candidates(logits, 21)
    for settings in (SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, top_k=20, top_p=0.9)):
        chosen, probabilities = Sampler(settings, 1, 6000).distribution(logits[0], [], [])
        order = np.argsort(ids[0, :20])  # the sampler's order
        again, few = Sampler(settings, 1, 20).distribution(values[0, :20][order], [], [])
        np.testing.assert_array_equal(ids[0, :20][order][again], chosen)
        np.testing.assert_allclose(few, probabilities, rtol=1e-6)
    _, best = log_probabilities(logits[0], 0, 20)
    assert [number for number, _ in best] == [*ids[0, :20]]
    np.testing.assert_allclose([value for _, value in best], values[0, :20] - summaries[0, 1], atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_logits_are_gathered(target: int) -> None:
    random = np.random.default_rng(5)
    logits, ids = random.normal(size=(3, 320)).astype(np.float32), random.integers(0, 300, (3, 300)).astype(np.int32)
    memory = Memory()
    out = memory.place(np.full(ids.shape, np.nan, np.float32))
    arguments = {"logits": memory.place(logits), "ids": memory.place(ids), "out": out, "stride": 320, "count": 300}
    launch("gather_logits", target, memory, 3, arguments)
    np.testing.assert_array_equal(memory.back(out, np.float32, ids.shape), np.take_along_axis(logits, ids, 1))
