"""The KV cache on disk: a restored cache gives the same logits bit for bit, and any other file is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.cpu.build import build_decoder
from qwchat.errors import SnapshotError
from qwchat.events import Finished
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.engine import Engine
from qwchat.model import kv_file
from qwchat.request import Request, SamplingParams
from tests.cpu.random_models import config, random_folder

MODEL = "0123456789abcdef"
CONFIG = config(num_hidden_layers=3)
IDS = np.random.default_rng(3).integers(0, 301, 700).tolist()
MORE = np.random.default_rng(4).integers(0, 301, 40).tolist()


def build(kv: str = "f32", context: int = 1024, threads: int = 2) -> CachedContext:
    return CachedContext(build_decoder(random_folder(CONFIG), threads=threads, context=context, kv=kv))


@pytest.fixture(scope="module", params=["f32", "q8"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def writer(kind: str) -> Iterator[CachedContext]:
    built = build(kind)
    yield built
    built.decoder.close()


@pytest.fixture(scope="module", params=[(540, 1), (1024, 2), (4096, 4)], ids=str)
def reader(request: pytest.FixtureRequest, kind: str) -> Iterator[CachedContext]:
    """Another cache, with another capacity and other threads."""
    built = build(kind, *request.param)
    yield built
    built.decoder.close()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 500])
def test_logits_are_those_of_the_original(
    writer: CachedContext, reader: CachedContext, tmp_path: Path, length: int
) -> None:
    path = tmp_path / "kv.snapshot"
    writer.truncate(0)
    writer.extend(IDS[:length])
    assert writer.save(path, MODEL) == path.stat().st_size == writer.snapshot_bytes()
    expected = writer.extend(MORE)
    reader.logits(MORE)  # the cache holds other tokens before
    assert reader.restore(path, MODEL) == length == reader.length
    assert reader.ids.tolist() == IDS[:length]
    assert np.array_equal(reader.extend(MORE), expected)


def test_it_serves_a_text_that_differs_early(writer: CachedContext, reader: CachedContext, tmp_path: Path) -> None:
    path = tmp_path / "kv.snapshot"
    writer.truncate(0)
    writer.extend(IDS[:500])
    writer.save(path, MODEL)
    prompt = [*IDS[:203], *MORE]
    request = Request(SamplingParams(), seed=1, max_tokens=12, speculate=False)
    reader.restore(path, MODEL)
    again = list(Engine(reader.decoder).generate(reader, prompt, request, usable_vocab=301))
    writer.truncate(0)
    fresh = list(Engine(writer.decoder).generate(writer, prompt, request, usable_vocab=301))
    ends = again[-1], fresh[-1]
    assert all(isinstance(end, Finished) for end in ends)
    assert [end.stats.cached_tokens for end in ends if isinstance(end, Finished)] == [203, 0]
    assert again[-13:-1] == fresh[-13:-1]


def test_an_empty_cache_can_be_saved_too(writer: CachedContext, reader: CachedContext, tmp_path: Path) -> None:
    writer.truncate(0)
    writer.save(tmp_path / "kv", MODEL)
    assert reader.restore(tmp_path / "kv", MODEL) == 0


@pytest.fixture(scope="module")
def small() -> Iterator[CachedContext]:
    built = build(context=600)
    yield built
    built.decoder.close()


@pytest.fixture(scope="module")
def file(small: CachedContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshot") / "kv.snapshot"
    small.truncate(0)
    small.extend(IDS[:50])
    small.save(path, MODEL)
    return path


def refused(cached: CachedContext, path: Path, model: str = MODEL) -> str:
    """Return why `path` is refused, after a check that nothing is cached."""
    with pytest.raises(SnapshotError) as caught:
        cached.restore(path, model)
    assert cached.length == 0
    return str(caught.value).replace(str(path), "FILE")


@given(st.data())
def test_any_changed_bit_is_detected(small: CachedContext, file: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    head = kv_file._head_bytes(CONFIG.num_layers, 50)
    padding = range(head, kv_file._data_offset(CONFIG.num_layers, 50))
    place = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, head - 1))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    broken = file.with_name("flipped")
    broken.write_bytes(flipped)
    broken.chmod(0o600)
    if place in padding:
        assert small.restore(broken, MODEL) == 50
    else:
        assert refused(small, broken).startswith("FILE ")
    small.restore(file, MODEL)


@given(st.integers(0, 1 << 30))
def test_a_file_that_was_cut_or_has_grown_is_damaged(small: CachedContext, file: Path, length: int) -> None:
    whole = file.read_bytes()
    cut = file.with_name("cut")
    cut.write_bytes(whole[: length % len(whole)] if length % 5 else whole + b"\0")
    cut.chmod(0o600)
    assert refused(small, cut) == "FILE is damaged"


def test_damage_does_not_linger(small: CachedContext, file: Path) -> None:
    small.truncate(0)
    expected = small.logits(MORE)
    broken = bytearray(file.read_bytes())
    broken[-4000:] = b"\xff" * 4000  # NaN
    path = file.with_name("nan")
    path.write_bytes(broken)
    path.chmod(0o600)
    assert refused(small, path) == "FILE is damaged"
    assert np.array_equal(small.logits(MORE), expected)


def patched(file: Path, offset: int, value: bytes) -> Path:
    """Return a copy of the file with other bytes in its head, and the matching checksum."""
    data = bytearray(file.read_bytes())
    data[offset : offset + len(value)] = value
    end = kv_file._head_bytes(CONFIG.num_layers, 50)
    data[end - 4 : end] = struct.pack("<I", kv_file.zlib.crc32(bytes(data[: end - 4])))
    path = file.with_name("patched")
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_other_files_are_told_apart(small: CachedContext, file: Path) -> None:
    assert refused(small, patched(file, 0, b"GGUF")) == "FILE is damaged"
    assert refused(small, patched(file, 8, b"\x01")) == "FILE was written by another version of qwchat"
    assert refused(small, patched(file, 12, b"q8\0")) == "FILE has another kv than f32"
    assert refused(small, file, "f" * 16) == "FILE belongs to another model"
    other = "FILE was written with other activations, on another device or by another version of qwchat"
    assert refused(small, patched(file, 36, b"\0" * 32)) == other
    assert refused(small, patched(file, 68, b"\x02")) == other
    token = kv_file._HEAD.size + 4 * CONFIG.num_layers
    assert refused(small, patched(file, token, struct.pack("<I", 301))) == "FILE is damaged"
    assert small.restore(patched(file, 0, b"qwchatKV"), MODEL) == 50


def test_a_cache_of_other_activations_is_refused(small: CachedContext, tmp_path: Path) -> None:
    decoder = build_decoder(random_folder(CONFIG), threads=1, context=600, kv="f32", activations=16)
    with closing(decoder):
        CachedContext(decoder).save(tmp_path / "kv", MODEL)
        assert CachedContext(decoder).restore(tmp_path / "kv", MODEL) == 0
    assert "other activations" in refused(small, tmp_path / "kv")


def test_it_must_fit(small: CachedContext, file: Path) -> None:
    other = build(context=49)
    assert refused(other, file) == "FILE holds 50 tokens, but the context is 49"
    other.decoder.close()
    q8 = build("q8", context=600)
    assert refused(q8, file) == "FILE has another kv than q8"
    q8.decoder.close()


def test_a_file_that_others_could_have_made_is_not_read(small: CachedContext, file: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(file.read_bytes())
    theirs.chmod(0o620)
    assert refused(small, theirs) == "FILE is not a file that only you can write"
    assert refused(small, tmp_path) == "FILE is not a file that only you can write"
    link = tmp_path / "link"
    link.symlink_to(file)
    assert refused(small, link).startswith("FILE cannot be read: ")
    small.logits(MORE)
    with pytest.raises(FileNotFoundError):
        small.restore(tmp_path / "nothing", MODEL)
    assert small.ids.tolist() == MORE


def test_a_file_appears_when_it_is_complete(
    small: CachedContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kv.snapshot"
    (tmp_path / "kv.snapshot.part").write_bytes(b"of a process that was killed")
    small.logits(IDS[:9])
    small.save(path, MODEL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kv.snapshot"]
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    small.logits(IDS[:30])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kv_file, "_write", full)
        with pytest.raises(SnapshotError, match=r"kv\.snapshot cannot be written: No space left on device"):
            small.save(path, MODEL)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["kv.snapshot"]
    with pytest.raises(SnapshotError, match="cannot be written: No such file or directory"):
        small.save(tmp_path / "nowhere" / "kv.snapshot", MODEL)
