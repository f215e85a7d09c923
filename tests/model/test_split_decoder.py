"""A split decoder gives the bits of a decoder of all layers, and its cache can be saved, restored and copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from qwchat.cpu.decoder import CpuDecoder
from qwchat.errors import SnapshotError
from qwchat.events import Finished, TokenStep
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.engine import Engine
from qwchat.model.decoder import PassCancelled
from qwchat.model.split_decoder import SplitDecoder
from qwchat.request import Request, SamplingParams
from tests.cpu.kernels.random_tensors import Folder
from tests.cpu.random_models import config, random_folder

LAYERS, VOCAB, CONTEXT = 4, 301, 600
IDS = np.random.default_rng(3).integers(0, VOCAB, 300)
FINGERPRINT = "0123456789abcdef"


def folder(seed: int = 1) -> Folder:
    """Return a random model of LAYERS layers."""
    return random_folder(config(num_hidden_layers=LAYERS), seed)


def whole(kv: str = "f32") -> CpuDecoder:
    """Return a decoder of all layers."""
    return CpuDecoder(folder(), context=CONTEXT, threads=1, kv=kv)


def split(border: int, first: str = "f32", last: str = "f32", context: int = CONTEXT) -> SplitDecoder:
    """Return a decoder that is divided before layer `border`; `first` and `last` are the kinds of the caches."""
    return SplitDecoder(
        CpuDecoder(folder(), context=context, threads=1, kv=first, layers=range(border)),
        CpuDecoder(folder(), context=context, threads=1, kv=last, layers=range(border, LAYERS)),
    )


@pytest.fixture(scope="module")
def decoder() -> Iterator[SplitDecoder]:
    """Open a decoder that is divided in the middle."""
    with closing(split(2)) as built:
        yield built


@pytest.mark.parametrize("border", range(LAYERS + 1))
def test_logits_are_those_of_one_decoder(border: int) -> None:
    with closing(whole()) as one, closing(split(border)) as two:
        caches = one.make_cache(), two.make_cache()
        for start, stop, logits_from in ((0, 100, 99), (100, 101, 0), (101, 109, 2), (109, 230, 121)):
            piece = IDS[start:stop]
            expected, found = (
                each.run(piece, start, logits_from, cache) for each, cache in zip((one, two), caches, strict=True)
            )
            assert np.array_equal(found, expected), (border, start)


def test_logits_of_a_cache_stay_until_its_next_pass(decoder: SplitDecoder) -> None:
    first, second = decoder.make_cache(), decoder.make_cache()
    held = decoder.run(IDS[:5], 0, 0, first)
    before = held.copy()
    decoder.run(IDS[5:12], 0, 0, second)
    assert np.array_equal(held, before)


def test_layers_cross_the_border_in_any_range(decoder: SplitDecoder) -> None:
    with closing(whole()) as one:
        for first, last in ((0, 1), (1, 3), (2, 4), (3, 3), (0, 4)):
            residuals = [each.embed(IDS[:9]) for each in (one, decoder)]
            for each, residual in zip((one, decoder), residuals, strict=True):
                each.run_layers(residual, first, last, 0, each.make_cache())
            assert np.array_equal(*residuals), (first, last)


def test_a_cancelled_pass_leaves_the_residual_unchanged(decoder: SplitDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwchat.cpu.decoder._CANCELLABLE_SECONDS", 0.0)
    residual = decoder.embed(IDS[:128])
    before = residual.copy()
    with pytest.raises(PassCancelled):
        decoder.run_layers(residual, 0, LAYERS, 0, decoder.make_cache(), lambda: True)
    assert np.array_equal(residual, before)


def test_a_snapshot_of_both_parts_is_restored(decoder: SplitDecoder, tmp_path: Path) -> None:
    file = tmp_path / "kv"
    context = CachedContext(decoder)
    expected = context.logits(IDS.tolist())
    context.truncate(200)
    assert context.save(file, FINGERPRINT) == file.stat().st_size == context.snapshot_bytes()
    again = CachedContext(decoder)
    assert again.restore(file, FINGERPRINT) == 200
    assert np.array_equal(again.extend(IDS[200:].tolist()), expected[200:])
    copy = CachedContext(decoder)
    assert copy.copy_from(again) == 300
    assert np.array_equal(copy.extend([1, 2]), again.extend([1, 2]))


def test_a_snapshot_of_another_division_is_refused(decoder: SplitDecoder, tmp_path: Path) -> None:
    file = tmp_path / "kv"
    context = CachedContext(decoder)
    context.extend(IDS[:20].tolist())
    context.save(file, FINGERPRINT)
    for other in (split(1), split(2, last="q8"), whole()):
        with closing(other):
            with pytest.raises(SnapshotError):
                CachedContext(other).restore(file, FINGERPRINT)
            assert CachedContext(other).copy_from(context) == 0


def test_caches_of_two_kinds_have_both_names() -> None:
    with closing(split(2, "f32", "q8")) as built:
        cache = built.make_cache()
        assert (cache.kind, cache.capacity, cache.layers) == ("f32+q8", 1024, range(LAYERS))
        cache.clear()
        with pytest.raises(ValueError, match="layer 4 is not in"):
            cache.segment_bytes(LAYERS, 1)


def test_drafts_do_not_change_the_text(decoder: SplitDecoder) -> None:
    prompt = np.tile(IDS[:12], 4).tolist()
    replies = []
    for built in (decoder, whole()):
        for speculate in (False, True):
            request = Request(SamplingParams(temperature=0.0), 0, max_tokens=40, speculate=speculate)
            events = list(Engine(built).generate(CachedContext(built), prompt, request, usable_vocab=VOCAB))
            assert isinstance(events[-1], Finished)
            replies.append([event.token_id for event in events if isinstance(event, TokenStep)])
    assert replies[0] == replies[1] == replies[2] == replies[3]
    assert len(replies[0]) == 40


def test_decoders_that_do_not_fit_together_are_refused() -> None:
    with closing(split(2)) as built, closing(split(1)) as other:
        for first, last in ((built.first, other.last), (built.last, built.first), (built.first, built.first)):
            with pytest.raises(ValueError, match="are not all layers of the model"):
                SplitDecoder(first, last)
        with closing(split(1, context=64)) as short, pytest.raises(ValueError, match="contexts differ: 600 and 64"):
            SplitDecoder(other.first, short.last)
        cache, part = built.make_cache(), built.first.make_cache()
        for call in (
            lambda: built.run(IDS[:3], 0, 0, part),
            lambda: built.run_layers(np.zeros((3, 128), np.float32), 0, 1, 0, part),
            lambda: built.run_layers(np.zeros((3, 128), np.float32), 2, 5, 0, cache),
            lambda: built.run(IDS[:3], 0, 0, other.make_cache()),
        ):
            with pytest.raises(ValueError):
                call()
