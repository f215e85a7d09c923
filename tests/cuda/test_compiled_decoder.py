"""A whole decoder from its compiled kernels, interpreted: prefill and decode give the logits of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from quant.formats import dequantise
from qwchat.cpu.decoder import CpuDecoder
from qwchat.model.gpu_memory import DevicePart
from qwchat.model.reference import Array, Reference
from qwchat.model.split_decoder import SplitDecoder
from tests.cuda.decoders import divergence, open_decoder, quantised_folder, small_config
from tests.cuda.fake_driver import FakeDriver

IDS = np.random.default_rng(3).integers(0, 301, 60)
# Passes, and the largest divergence from the CPU in nats: its prefill rounds activations to 8 bits.
DECODE = [(8, 1e-4), (8, 1e-4), (1, 1e-4), (2, 1e-4), (1, 1e-4)]
PREFILL = [(20, 1e-3), (11, 1e-3), (1, 5e-4), (5, 5e-4)]
FORMATS = {
    "q4": ("q4", 32, False),
    "q8": ("q8", 32, False),
    "lin4": ("lin4", 64, True),
    "lin8": ("lin8", 64, False),
    "bf16": ("bf16", 0, False),
}


def clear_choices(logits: np.ndarray) -> np.ndarray:
    """Return the rows whose largest logit is clear: random weights have near ties."""
    best = np.sort(logits, axis=-1)
    return best[:, -1] - best[:, -2] > 0.1


def compare(
    cache: str, passes: list[tuple[int, float]], capability: tuple[int, int], layers: int = 2, **formats
) -> None:
    """Assert that passes on a fake GPU and on the CPU have nearly the same logits, and the same clear choices."""
    folder = quantised_folder(small_config(), **formats)
    driver = FakeDriver(capability=capability, multiprocessors=2)
    cpu = CpuDecoder(folder, context=128, threads=2, kv="f32" if cache == "f16" else "q8")
    part = DevicePart.whole(folder.config) if layers == 2 else DevicePart.last(folder.config, layers)
    gpu = open_decoder(driver, folder, context=128, kind=cache, part=part)
    first = None
    decoder = gpu
    if layers < 2:
        first = CpuDecoder(folder, context=128, threads=2, kv=cpu.make_cache().kind, layers=range(2 - layers))
        decoder = SplitDecoder(first, gpu)
    caches, position = (cpu.make_cache(), decoder.make_cache()), 0
    for tokens, limit in passes:
        ids = IDS[position : position + tokens]
        expected = cpu.run(ids, position, max(0, tokens - 4), caches[0]).copy()
        rows = decoder.run_rows(ids, position, max(0, tokens - 4), caches[1])
        found = np.array([row.values() for row in rows])
        assert divergence(expected, found) <= limit
        assert (expected.argmax(-1) == found.argmax(-1))[clear_choices(expected)].all()
        for row, logits in zip(rows, found, strict=True):
            largest = row.largest()
            if layers == 2:
                assert (largest.ids == np.argsort(-logits, kind="stable")[:64]).all()
        position += tokens
    for each in (cpu, gpu, first):
        if each is not None:
            each.close()
    assert driver.leaked == []


def test_one_token_of_q4() -> None:
    compare("q8", [(1, 1e-4)], (9, 0), kind=FORMATS["q4"], head=FORMATS["q8"])


CASES = [
    *(("q8" if index % 2 else "f16", fmt, (9, 0)) for index, fmt in enumerate(FORMATS)),
    *(("q8", "q4", capability) for capability in ((7, 5), (8, 0))),
    *(("f16", "q8", capability) for capability in ((7, 5), (8, 0))),
]


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "fmt", "capability"), CASES)
def test_decode(cache: str, fmt: str, capability: tuple[int, int]) -> None:
    compare(cache, DECODE, capability, kind=FORMATS[fmt], head=FORMATS["bf16" if fmt == "bf16" else "q8"])


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "fmt", "capability"), CASES)
def test_prefill(cache: str, fmt: str, capability: tuple[int, int]) -> None:
    compare(cache, PREFILL, capability, kind=FORMATS[fmt], head=FORMATS["q8"])


@pytest.mark.slow
@pytest.mark.parametrize("fmt", FORMATS)
def test_prefill_in_two_chunks_is_the_float_model(fmt: str) -> None:
    """Check the bar of decode against the float model, which prefill rounds less than the CPU does."""
    folder = quantised_folder(small_config(), kind=FORMATS[fmt], head=FORMATS["q8"])

    def weights(name: str) -> Array:
        packed = folder.tensor(name)
        values = packed.parts["values"] if packed.format == "vector" else dequantise(packed)
        return values.astype(np.float64)

    expected = Reference(folder.config, weights).logits(IDS[:32].tolist())
    driver = FakeDriver(multiprocessors=2)
    gpu = open_decoder(driver, folder, context=128, kind="f16", part=DevicePart.whole(folder.config))
    cache = gpu.make_cache()
    for start in (0, 16):
        wanted, found = expected[start : start + 16], gpu.run(IDS[start : start + 16], start, 0, cache)
        assert divergence(wanted, found) <= 1e-4
        assert (wanted.argmax(-1) == found.argmax(-1))[clear_choices(wanted)].all()
    gpu.close()
    assert driver.leaked == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8"])
def test_one_layer_on_the_cpu_and_one_on_the_gpu(kind: str) -> None:
    compare(kind, DECODE + PREFILL, (9, 0), layers=1, kind=FORMATS["q4"], head=FORMATS["q8"])


@pytest.mark.slow
def test_matrices_of_a_layer_may_have_different_formats() -> None:
    mixed = {"v_proj": FORMATS["q8"], "up_proj": FORMATS["lin8"], "down_proj": FORMATS["bf16"]}
    compare("q8", DECODE + PREFILL, (9, 0), kind=FORMATS["q4"], head=FORMATS["q8"], **mixed)
