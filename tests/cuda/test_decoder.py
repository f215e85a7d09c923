"""The decoder on a fake driver: launches, graphs, caches, memory and errors, with NumPy twins as kernels."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.families import expected_tensors
from quant.formats import PackedTensor, dequantise, find_format
from quant.formats.widening import widen_tiles
from qwchat.cpu.decoder import CpuDecoder
from qwchat.cuda import manifest, weights
from qwchat.cuda.decoder import CudaDecoder
from qwchat.errors import GpuLostError, GpuMemoryError, ModelError, QwchatError
from qwchat.model import kv_file
from qwchat.model.decoder import PassCancelled
from qwchat.model.gpu_memory import DevicePart, gpu_memory, stored_tensors
from qwchat.model.reference import Reference
from qwchat.model.split_decoder import SplitDecoder
from tests.cpu.kernels.random_tensors import Folder
from tests.cuda.decoders import divergence, open_decoder, quantised_folder, small_config
from tests.cuda.fake_driver import CONTEXT_BYTES, FakeDriver
from tests.cuda.test_failures import ENDING, last_wait
from tests.cuda.twin_kernels import twin_executor
from tests.tiers import count


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(execute=twin_executor(manifest.kernels()))


# Rounding keys and values to f16, and on the CPU the weights of the softmax to 16 bits, moves some activations to
# another 8-bit code. With random weights that alone is a divergence of up to 2.2e-4; with an exact cache and exact
# weights these launches give 3.4e-5 and less, mostly 1e-14.
LIMIT = 3e-4
FAMILIES = [{}, {"model_type": "qwen3", "tie_word_embeddings": True}]


def folder_of(**changes: Any) -> Folder:
    """Return a small model; v and up have other formats than their neighbours."""
    kinds = {"v_proj": ("q8", 32, False), "up_proj": ("lin8", 64, True)}
    return quantised_folder(small_config(**changes), **kinds)


@contextmanager
def opened(driver: FakeDriver, folder: Folder | None = None, **options: Any) -> Iterator[CudaDecoder]:
    decoder = open_decoder(driver, folder or folder_of(), **options)
    try:
        yield decoder
    finally:
        decoder.close()
    assert driver.leaked == []
    assert not driver.retained.total()


@contextmanager
def cpu_decoder(folder: Folder, kind: str, **options: Any) -> Iterator[CpuDecoder]:
    decoder = CpuDecoder(folder, context=256, threads=2, kv="f32" if kind == "f16" else "q8", **options)
    yield decoder
    decoder.close()


def ids(count: int) -> Any:
    return np.random.default_rng(3).integers(0, 301, 40)[:count]


def assert_close(expected: Any, actual: Any) -> None:
    """Assert a small divergence, and the same greedy ids where the best logit is not almost the second best."""
    assert divergence(expected, actual) <= LIMIT
    best = np.sort(expected, axis=-1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > 0.1
    assert (expected.argmax(-1) == actual.argmax(-1))[clear].all()
    assert clear.mean() > 0.3 or len(clear) < 4


@pytest.mark.parametrize("kind", ["f16", "q8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_cpu(driver: FakeDriver, family: dict[str, Any], kind: str) -> None:
    folder = folder_of(**family)
    with cpu_decoder(folder, kind) as cpu, opened(driver, folder, kind=kind) as gpu:
        caches, position = (cpu.make_cache(), gpu.make_cache()), 0
        for tokens in (8, 8, 1, 2, 5, 1):
            some = ids(30)[position : position + tokens]
            logits = [each.run(some, position, 0, cache).copy() for each, cache in zip((cpu, gpu), caches, strict=True)]
            assert_close(*logits)
            position += tokens


@pytest.mark.parametrize("kind", ["f16", pytest.param("q8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", [FAMILIES[0], pytest.param(FAMILIES[1], marks=pytest.mark.slow)])
def test_prefill_is_nearer_to_the_exact_model_than_the_cpu(
    driver: FakeDriver, family: dict[str, Any], kind: str
) -> None:
    folder = folder_of(**family)

    def weights(name: str) -> Any:
        packed = folder.tensor(name)
        return (packed.parts["values"] if packed.format == "vector" else dequantise(packed)).astype(np.float64)

    expected = Reference(folder.config, weights).logits(ids(25).tolist())
    with cpu_decoder(folder, kind) as cpu, opened(driver, folder, kind=kind) as gpu:
        found = [each.run(ids(25), 0, 0, each.make_cache()).copy() for each in (cpu, gpu)]
        of_cpu, of_gpu = (divergence(expected, each) for each in found)
        assert of_gpu <= {"f16": 1e-4, "q8": 1e-3}[kind], "the head alone rounds its input to 8 bits"
        assert of_gpu < of_cpu <= 5e-3
        cache = gpu.make_cache()
        for start in (0, 12):
            logits = gpu.run(ids(25)[start : start + 13], start, 0, cache)
        assert divergence(found[1][12:], logits) <= 1e-9, "a chunk sees the cache of the chunks before"
        rows = gpu.run_rows(ids(25), 0, 24, gpu.make_cache())
        assert (rows[0].values() == found[1][24]).all()


def test_the_largest_logits_are_found_on_the_device_and_rows_stay_there(driver: FakeDriver) -> None:
    with opened(driver) as decoder:
        cache = decoder.make_cache()
        expected = decoder.run(ids(4), 0, 1, cache).copy()
        copied = driver.log.count("copy_to_host")
        rows = decoder.run_rows(ids(4), 0, 1, cache)
        assert len(rows) == 3
        for row, logits in zip(rows, expected, strict=True):
            largest = row.largest()
            assert largest is not None
            assert (largest.ids == np.argsort(-logits, kind="stable")[:64]).all()
            assert (largest.values == logits[largest.ids]).all()
        assert driver.log.count("copy_to_host") == copied + 1, "only in the capture"
        assert all((row.values() == logits).all() for row, logits in zip(rows, expected, strict=True))
        late = decoder.run_rows(ids(1), 4, 0, cache)
        decoder.run(ids(1), 5, 0, cache)
        with pytest.raises(RuntimeError, match="overwritten by a later pass"):
            late[0].values()
        assert decoder.run_rows(ids(2), 4, 2, cache) == []


def test_logits_that_are_not_finite_are_not_ranked(driver: FakeDriver) -> None:
    folder = folder_of(tie_word_embeddings=False)
    folder.tensor("lm_head.weight").parts["row_scales"][0, 3] = np.nan
    with opened(driver, folder) as decoder:
        (row,) = decoder.run_rows(ids(1), 0, 0, decoder.make_cache())
        assert row.largest() is None
        assert np.isnan(row.values()[3])


@pytest.mark.parametrize("dense", [("o_proj", "down_proj"), ("q_proj", "gate_proj"), ("down_proj", "up_proj")])
def test_layers_may_have_matrices_of_floats(driver: FakeDriver, dense: tuple[str, ...]) -> None:
    folder = quantised_folder(small_config(), **dict.fromkeys(dense, ("bf16", 0, False)))
    with cpu_decoder(folder, "f16") as cpu, opened(driver, folder) as gpu:
        assert_close(cpu.run(ids(6), 0, 0, cpu.make_cache()), gpu.run(ids(6), 0, 0, gpu.make_cache()))


@pytest.mark.parametrize("kind", ["f16", "q8"])
def test_a_model_divided_over_cpu_and_gpu_gives_the_same(driver: FakeDriver, kind: str) -> None:
    folder = folder_of()
    with cpu_decoder(folder, kind) as cpu, cpu_decoder(folder, kind, layers=range(1)) as first:
        last = open_decoder(driver, folder, kind=kind, part=DevicePart.last(folder.config, 1))
        split = SplitDecoder(first, last)
        caches, position = (cpu.make_cache(), split.make_cache()), 0
        for tokens in (8, 1, 3):
            some = ids(30)[position : position + tokens]
            expected = cpu.run(some, position, tokens - 1, caches[0])
            assert_close(expected, split.run(some, position, tokens - 1, caches[1]))
            position += tokens
        last.close()
    assert driver.leaked == []


def test_allocations_are_those_of_the_estimate_to_the_byte(driver: FakeDriver) -> None:
    folder = folder_of()
    config = folder.config
    tensors = stored_tensors(config, folder.tensor)
    for kind in ("f16", "q8"):
        for part in (DevicePart.whole(config), DevicePart.last(config, 1)):
            expected = gpu_memory(config, tensors, 256, kind, part)
            with opened(driver, folder, kind=kind, part=part) as decoder:
                cache = decoder.make_cache()
                assert decoder.bytes_by_purpose == {
                    "weights": expected.weights,
                    "cache": expected.cache,
                    "workspace": expected.workspace,
                }
                assert sum(driver.device.live.values()) == expected.allocated
                assert cache.capacity == 256


def widened(folder: Folder) -> Folder:
    """Return the same model with every q6 matrix in q8."""
    tensors = {name: folder.tensor(name) for name in expected_tensors(folder.config)}
    for name, packed in tensors.items():
        if packed.format == "q6":
            parts = widen_tiles(find_format("q6"), packed, 0, packed.num_tiles)
            tensors[name] = PackedTensor("q8", packed.shape, 32, parts)
    return Folder(folder.config, **tensors)


def test_q6_runs_as_q8_with_the_same_memory(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    six, four = ("q6", 32, False), ("q4", 32, False)
    folder = quantised_folder(small_config(), kind=four, head=six, v_proj=six, o_proj=six, down_proj=six)
    monkeypatch.setattr(weights, "_WIDENED_WEIGHTS", 3 * 16 * folder.config.hidden_size)  # some tiles at a time
    expected = gpu_memory(
        folder.config, stored_tensors(folder.config, folder.tensor), 256, "f16", DevicePart.whole(folder.config)
    )
    logits, device_bytes = [], []
    for model in (folder, widened(folder)):
        with opened(driver, model) as decoder:
            cache = decoder.make_cache()
            logits.append([decoder.run(ids(12), 0, 11, cache).copy(), decoder.run(ids(13)[12:], 12, 0, cache).copy()])
            device_bytes.append(decoder.bytes_by_purpose["weights"])
    assert device_bytes == [expected.weights] * 2
    for one, other in zip(*logits, strict=True):
        assert np.array_equal(one, other)
    with opened(driver, folder) as decoder, cpu_decoder(folder, "f16") as cpu:
        found = decoder.run(ids(5), 0, 4, decoder.make_cache())
        assert_close(cpu.run(ids(5), 0, 4, cpu.make_cache()), found)


def test_a_decode_step_is_one_replay_and_one_wait(driver: FakeDriver) -> None:
    with opened(driver) as decoder:
        cache = decoder.make_cache()
        for position in range(3):
            before = len(driver.log)
            decoder.run(ids(3)[position : position + 1], position, 0, cache)
        assert driver.log[before:] == ["set_context", "launch_graph", "synchronise_stream"]
        assert driver.log.count("instantiate") == 1
        decoder.run(ids(3)[:2], 3, 1, cache)
        assert driver.log.count("instantiate") == 2


def test_grouping_of_up_to_8_tokens_does_not_matter(driver: FakeDriver) -> None:
    with opened(driver) as decoder:
        one, many = decoder.make_cache(), decoder.make_cache()
        expected = [decoder.run(ids(8)[i : i + 1], i, 0, one)[0].copy() for i in range(8)]
        assert divergence(np.array(expected), decoder.run(ids(8), 0, 0, many)) < 1e-12


def test_caches_are_independent_and_their_memory_and_graphs_are_freed(driver: FakeDriver) -> None:
    with opened(driver) as decoder:
        first, second = decoder.make_cache(), decoder.make_cache()
        for cache in (first, second):
            decoder.run(ids(4), 0, 3, cache)
        expected = decoder.run(ids(5)[4:], 4, 0, second).copy()
        size = decoder.bytes_by_purpose["cache"]
        del cache, second
        gc.collect()
        assert (decoder.run(ids(5)[4:], 4, 0, first) == expected).all()
        assert decoder.bytes_by_purpose["cache"] == size // 2
        assert driver.log.count("destroy_executable") == 2


@pytest.mark.parametrize("kind", ["f16", "q8"])
def test_a_snapshot_continues_in_another_decoder(driver: FakeDriver, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cache.kv"
    with opened(driver, kind=kind) as decoder:
        cache = decoder.make_cache()
        decoder.run(ids(20), 0, 20, cache)
        kv_file.save(path, cache, ids(20), "0" * 16)
        expected = decoder.run(ids(21)[20:], 20, 0, cache).copy()
    with opened(driver, kind=kind, context=512) as decoder:
        cache = decoder.make_cache()
        assert (kv_file.restore(path, cache, 512, "0" * 16, threads=3) == ids(20)).all()
        assert (decoder.run(ids(21)[20:], 20, 0, cache) == expected).all()
        cache.clear()
        assert not any(piece.any() for layer in cache.layers for piece in cache.segments(layer, 30))


def test_a_cancelled_pass_leaves_the_cache_below_it(driver: FakeDriver) -> None:
    with opened(driver) as decoder:
        cache = decoder.make_cache()
        decoder.run(ids(5), 0, 5, cache)
        expected = decoder.run(ids(6)[5:], 5, 0, cache).copy()
        with pytest.raises(PassCancelled):
            decoder.run(ids(30), 5, 29, cache, cancelled=lambda: True)
        assert (decoder.run(ids(6)[5:], 5, 0, cache) == expected).all()
        residual = decoder.embed(ids(20))
        before = residual.copy()
        with pytest.raises(PassCancelled):
            decoder.run_layers(residual, 0, 2, 5, cache, cancelled=lambda: True)
        assert (residual == before).all()


def test_layers_and_head_one_by_one_give_the_whole(driver: FakeDriver) -> None:
    with opened(driver) as decoder:
        expected = decoder.run(ids(11), 0, 2, decoder.make_cache()).copy()
        residual, cache = decoder.embed(ids(11)), decoder.make_cache()
        for layer in range(2):
            decoder.run_layers(residual, layer, layer + 1, 0, cache)
        assert (decoder.head(residual, 2) == expected).all()
        decoder.run_layers(residual, 1, 1, 0, cache)


def test_requests_that_do_not_fit_are_refused(driver: FakeDriver) -> None:
    decoder, other = open_decoder(driver, folder_of()), open_decoder(driver, folder_of())
    cache = decoder.make_cache()
    for some, position, text in (
        (ids(0), 0, "0 tokens"),
        (ids(2), 255, "do not fit a context of 256"),
        (np.array([301]), 0, r"0\.\.300"),
        (np.array([-1]), 0, r"0\.\.300"),
    ):
        with pytest.raises(ValueError, match=text):
            decoder.run(some, position, 0, cache)
    with pytest.raises(ValueError, match="another decoder"):
        decoder.run(ids(1), 0, 0, other.make_cache())
    with pytest.raises(ValueError, match=r"must be \(tokens, 256\) f32"):
        decoder.run_layers(np.zeros((1, 255), np.float32), 0, 1, 0, cache)
    with pytest.raises(ValueError, match="are not all in"):
        decoder.run_layers(np.zeros((1, 256), np.float32), 0, 3, 0, cache)
    decoder.close()
    other.close()
    part = open_decoder(driver, folder_of(), part=DevicePart.last(folder_of().config, 1))
    with pytest.raises(ValueError, match="use run_layers"):
        part.run(ids(1), 0, 0, part.make_cache())
    with pytest.raises(ValueError, match="the embedding is not loaded"):
        part.embed(ids(1))
    part.close()


def test_a_format_or_head_size_without_kernels_is_named(driver: FakeDriver, tmp_path: Path) -> None:
    for file in manifest.PTX_FOLDER.rglob("attend_f16_d64.*"):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / file.parent.name)
    with pytest.raises(ModelError, match=r"no kernel embed_q8, which tensor model\.embed_tokens\.weight needs"):
        open_decoder(driver, folder_of(), ptx=tmp_path)
    with pytest.raises(ModelError, match="memory: the GPU has no kernel for heads of 32 dimensions"):
        open_decoder(driver, quantised_folder(small_config(head_dim=32)))
    assert not driver.retained.total()
    assert driver.leaked == []


def test_progress_ends_with_all_weights(driver: FakeDriver) -> None:
    seen: list[tuple[int, int]] = []
    with opened(driver, progress=lambda done, total: seen.append((done, total))):
        done, total = seen[-1]
        assert [each for each, _ in seen] == sorted(each for each, _ in seen)
        assert 0.95 < done / total <= 1, "all but the gaps between the parts"


def test_a_model_that_does_not_fit_is_told_before_anything_is_allocated() -> None:
    driver = FakeDriver(memory=CONTEXT_BYTES + (8 << 20), execute=twin_executor(manifest.kernels()))
    with pytest.raises(GpuMemoryError, match=r"the model with its KV cache needs .* but only 8 MiB are free: choose"):
        open_decoder(driver, folder_of())
    assert "allocate" not in driver.log
    assert not driver.retained.total()


def use(driver: FakeDriver, folder: Folder) -> Any:
    """Open a decoder, prefill, decode, close. Return the last logits."""
    decoder = open_decoder(driver, folder)
    try:
        cache = decoder.make_cache()
        decoder.run(ids(9), 0, 9, cache)
        return decoder.run(ids(10)[9:], 9, 0, cache).copy()
    finally:
        decoder.close()


@pytest.mark.parametrize("code", [2, 700])
def test_each_call_may_fail(driver: FakeDriver, code: int) -> None:
    folder, execute = quantised_folder(small_config()), driver.execute
    expected, calls = use(driver, folder), len(driver.log)
    ending = last_wait(driver.log)
    for number in range(0, calls, count(1, 61)):
        failing = FakeDriver(execute=execute, fail={number: code})
        error = None
        try:
            assert (use(failing, folder) == expected).all()
        except QwchatError as raised:
            error = raised
        call = failing.log[number]
        assert error is not None or call in ENDING or number == ending
        assert error is None or isinstance(error, GpuLostError if code == 700 else GpuMemoryError), call
        if code == 2:
            assert len(failing.leaked) <= (call in ENDING), call
        assert failing.retained.total() == (call == "release_context")


def test_a_lost_context_ends_a_pass_and_closing_still_works(driver: FakeDriver) -> None:
    decoder = open_decoder(driver, folder_of())
    cache = decoder.make_cache()
    driver.lose = (len(driver.launches) + 7, 719)
    with pytest.raises(GpuLostError, match="launch failed"):
        decoder.run(ids(4), 0, 3, cache)
    with pytest.raises(GpuLostError):
        decoder.run(ids(1), 0, 0, cache)
    decoder.close()
    assert not driver.retained.total()


def test_an_interrupted_pass_does_not_disturb_the_next_one(driver: FakeDriver) -> None:
    with opened(driver) as decoder:
        cache = decoder.make_cache()
        expected = decoder.run(ids(3), 0, 0, cache).copy()

        def interrupt(_stream: int) -> None:
            del driver.synchronise_stream
            raise KeyboardInterrupt

        driver.synchronise_stream = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            decoder.run(ids(5)[2:], 0, 0, cache)
        assert (decoder.run(ids(3), 0, 0, cache) == expected).all()
