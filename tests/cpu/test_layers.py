"""Ranges of layers: any split gives the logits of one pass bit for bit, and a range uses the memory of a range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quant.formats import PackedTensor
from qwchat.cpu.decoder import CpuDecoder
from qwchat.model.decoder import Cache, PassCancelled
from tests.cpu.kernels.random_tensors import KINDS, Folder, random_packed
from tests.cpu.random_models import config, random_folder

LAYERS = 5
IDS = np.random.default_rng(5).integers(0, 301, 170)
# A whole chunk, then a few tokens, then single tokens, as in a reply; some positions are beyond the first tile.
PIECES = np.split(IDS, [128, 150, 157, *range(158, 170)])
SPLITS = [(0, 5), (0, 1, 5), (0, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)]


def folder(seed: int = 0, tied: bool = False) -> Folder:
    """Random weights; the projections of layer 2 are q4, so that its activations are quantised."""
    model = config(num_hidden_layers=LAYERS, tie_word_embeddings=tied)
    made, rng = random_folder(model, seed), np.random.default_rng(seed)
    for name, packed in list(made._tensors.items()):
        if ".layers.2." in name and len(packed.shape) == 2:
            quantised = random_packed(KINDS[0], *packed.shape, rng)
            quantised.parts["row_scales"] *= np.float32(1e-4)
            made._tensors[name] = quantised
    return made


class RecordingFolder(Folder):
    """A folder that records the names of the tensors that are read."""

    def __init__(self, source: Folder) -> None:
        super().__init__(source.config, **source._tensors)
        self.asked: set[str] = set()

    def tensor(self, name: str) -> PackedTensor:
        self.asked.add(name)
        return super().tensor(name)


@contextmanager
def decoder(source: Folder, kv: str = "f32", context: int = 256, layers: range | None = None) -> Iterator[CpuDecoder]:
    with closing(CpuDecoder(source, context=context, threads=2, kv=kv, layers=layers)) as built:
        yield built


def whole(built: CpuDecoder, cache: Cache) -> NDArray[np.float32]:
    """Return the logits (tokens, vocab) of IDS from run()."""
    position, rows = 0, []
    for piece in PIECES:
        rows.append(built.run(piece, position, 0, cache).copy())
        position += len(piece)
    return np.concatenate(rows)


def split(parts: Sequence[tuple[CpuDecoder, Cache, range]]) -> NDArray[np.float32]:
    """Return the logits (tokens, vocab) of IDS from run_layers() of each part in turn."""
    position, rows = 0, []
    for piece in PIECES:
        residual = parts[0][0].embed(piece)
        for built, cache, layers in parts:
            built.run_layers(residual, layers.start, layers.stop, position, cache)
        rows.append(parts[-1][0].head(residual, 0).copy())
        position += len(piece)
    return np.concatenate(rows)


@pytest.mark.parametrize("kv", ["f32", "q8"])
def test_any_split_gives_the_logits_of_a_whole_pass(kv: str) -> None:
    with decoder(folder(), kv) as built:
        expected = whole(built, built.make_cache())
        assert np.isfinite(expected).all()
        for cuts in SPLITS:
            cache = built.make_cache()
            parts = [(built, cache, range(*cut)) for cut in pairwise(cuts)]
            assert np.array_equal(split(parts), expected), cuts


@pytest.mark.parametrize("kv", ["f32", "q8"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied head"])
def test_decoders_of_a_range_each_give_the_logits_of_a_whole_one(kv: str, tied: bool) -> None:
    source = folder(tied=tied)
    with decoder(source, kv) as built:
        expected = whole(built, built.make_cache())
    for cuts in [(0, 3, 5), (0, 0, 2, 4, 5, 5)]:
        with ExitStack() as stack:
            ranges = [range(*cut) for cut in pairwise(cuts)]
            built_parts = [stack.enter_context(decoder(source, kv, layers=layers)) for layers in ranges]
            parts = [(part, part.make_cache(), part.layers) for part in built_parts]
            assert np.array_equal(split(parts), expected), cuts


def test_the_last_rows_of_the_head_alone() -> None:
    with decoder(folder()) as built:
        cache = built.make_cache()
        expected = built.run(IDS[:20], 0, 17, cache).copy()
        residual = built.embed(IDS[:20])
        built.run_layers(residual, 0, LAYERS, 0, cache)
        assert built.head(residual, 20).shape == (0, 301)
        assert np.array_equal(built.head(residual, 17), expected)


@pytest.mark.parametrize(
    ("layers", "others"),
    [
        (range(1, 3), {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}),
        (range(3), {"model.norm.weight", "lm_head.weight"}),
        (range(3, 5), {"model.embed_tokens.weight"}),
        (range(0), {"model.norm.weight", "lm_head.weight"}),
    ],
    ids=["a middle", "the first", "the last", "none"],
)
def test_a_range_reads_its_own_tensors_only(layers: range, others: set[str]) -> None:
    source = RecordingFolder(folder())
    numbers = {f"layers.{number}" for number in range(LAYERS)}
    with decoder(source, "q8", layers=layers):
        pass
    assert (
        {".".join(name.split(".")[1:3]) for name in source.asked if ".layers." in name}
        == {f"layers.{number}" for number in layers}
        <= numbers
    )
    outside = {name for name in source._tensors if ".layers." not in name}
    assert outside - source.asked == others


def allocated_bytes(parts: Sequence[NDArray[Any]]) -> int:
    """Return the bytes of some buffers."""
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("kv", ["f32", "q8"])
def test_a_range_uses_its_own_memory_only(kv: str) -> None:
    source = folder()
    with decoder(source, kv) as every, decoder(source, kv, layers=range(1, 3)) as some:
        whole_cache, cache = every.make_cache(), some.make_cache()
        assert allocated_bytes(cache._memory) * LAYERS == allocated_bytes(whole_cache._memory) * 2 > 0
        assert list(cache.layers) == [1, 2]
        sizes = [[row.nbytes for row in each.segments(2, 40)] for each in (whole_cache, cache)]
        assert sizes[0] == sizes[1]
        with pytest.raises(ValueError):
            next(cache.segments(0, 40))
        assert some._records.nbytes * LAYERS == every._records.nbytes * 2
    with decoder(source, kv, layers=range(5, 5)) as head:
        assert allocated_bytes(head.make_cache()._memory) == 0
        assert allocated_bytes(head._workspace._memory) < allocated_bytes(every._workspace._memory) / 2, (
            "without layers there is no space for them"
        )


@pytest.mark.parametrize("kv", ["f32", "q8"])
def test_caches_of_one_decoder_are_independent(kv: str) -> None:
    """Check three texts in turn, with passes of different lengths.

    The logits of each text are those that it has alone.
    """
    rng = np.random.default_rng(7)
    texts = [rng.integers(0, 301, 60) for _ in range(3)]
    with decoder(folder(), kv) as built:
        alone = []
        for text in texts:
            cache = built.make_cache()
            start = built.run(text[:50], 0, 0, cache).copy()
            alone.append(np.concatenate([start, built.run(text[50:], 50, 0, cache)]))
        caches, held, views = [built.make_cache() for _ in texts], [0] * 3, {}
        while min(held) < 60:
            which = int(rng.integers(3))
            size = min(int(rng.choice([1, 2, 9])), 60 - held[which])
            if not size:
                continue
            start = held[which]
            views[which] = built.run(texts[which][start : start + size], start, 0, caches[which]), start, size
            held[which] += size
            # The logits of the other texts' last passes are unchanged.
            for each, (logits, first, count) in views.items():
                assert np.array_equal(logits, alone[each][first : first + count])


def test_mismatched_layers_and_caches_are_refused() -> None:
    residual = np.zeros((3, 128), np.float32)
    with decoder(folder()) as every, decoder(folder(), layers=range(1, 3)) as some:
        cache, part = every.make_cache(), some.make_cache()
        for call in (
            lambda: every.run(IDS[:3], 0, 0, part),
            lambda: some.run(IDS[:3], 0, 0, part),
            lambda: some.run_layers(residual, 1, 3, 0, cache),
            lambda: some.run_layers(residual, 0, 2, 0, part),
            lambda: some.run_layers(residual, 2, 4, 0, part),
            lambda: some.run_layers(residual, 2, 1, 0, part),
            lambda: every.run_layers(residual[:, :96], 0, 1, 0, cache),
            lambda: every.run_layers(residual.astype(np.float64), 0, 1, 0, cache),
            lambda: every.run_layers(residual, 0, 1, 254, cache),
            lambda: some.embed(IDS[:3]),
            lambda: some.head(residual, 0),
            lambda: every.embed(np.array([301])),
        ):
            with pytest.raises(ValueError):
                call()
        for layers in (range(3, 6), range(-1, 2), range(0, 4, 2), range(3, 2)):
            with pytest.raises(ValueError, match="layers must be a range within"):
                CpuDecoder(folder(), context=64, threads=1, layers=layers)


def test_a_cancelled_range_leaves_the_residual_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwchat.cpu.decoder._CANCELLABLE_SECONDS", 0.0)
    with decoder(folder()) as built:
        cache = built.make_cache()
        residual = built.embed(IDS[:128])
        before = residual.copy()
        with pytest.raises(PassCancelled):
            built.run_layers(residual, 0, LAYERS, 0, cache, lambda: True)
        assert np.array_equal(residual, before)
        built.run_layers(residual, 0, LAYERS, 0, cache, lambda: False)
        expected = built.run(IDS[:128], 0, 100, built.make_cache())
        assert np.array_equal(built.head(residual, 100), expected)
