"""The engine of ik_llama.cpp over fake bindings: settings, calls, positions, and the filled cache."""

from __future__ import annotations

import ctypes
import importlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks.cells import Setting

EMBEDDING, TOTAL, KEY_BYTES = 600, 2000, 4


class FakeBindings(ModuleType):
    """Bindings whose cache is a list of the evaluated tokens; one layer with rows of 4 bytes for K and for V."""

    def __init__(self) -> None:
        super().__init__("ik_llama_cpp._ctypes_api")
        self.cache: list[int] = []
        self.calls: list[list[int]] = []
        self.freed: list[str] = []
        self.wanted_logits: list[int] = []
        self.llama_model_default_params = SimpleNamespace
        self.llama_context_default_params = SimpleNamespace
        self.llama_backend_init = lambda: None
        self.llama_model_get_vocab = lambda model: model
        self.llama_vocab_n_tokens = lambda vocab: 50
        self.llama_batch_free = lambda batch: self.freed.append("batch")
        self.llama_free = lambda context: self.freed.append("context")
        for name in ("model_load_from_file", "init_from_model", "batch_init", "decode"):
            setattr(self, f"llama_{name}", getattr(self, f"_{name}"))
        names = ("log_set", "synchronize", "kv_cache_seq_rm", "model_size", "get_model_tensor", "print_system_info")
        state = (f"state_seq_{name}" for name in ("get_size", "get_data", "set_data"))
        functions = {f"llama_{name}": function(getattr(self, f"_{name}")) for name in (*names, *state)}
        self._lib = SimpleNamespace(**functions, ggml_nbytes=function(lambda tensor: tensor))

    def _model_load_from_file(self, path: bytes, params: SimpleNamespace) -> int:
        self.model_params = params
        return 0 if b"broken" in path else 1

    def _init_from_model(self, model: int, params: SimpleNamespace) -> int:
        self.context_params = params
        return 0 if params.n_ctx > 1000 else 2

    def _batch_init(self, tokens: int, embedding: int, sequences: int) -> SimpleNamespace:
        rows = {name: [0] * tokens for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(**rows, seq_id=[[0] for _ in range(tokens)], n_tokens=0)

    def _decode(self, context: int, batch: SimpleNamespace) -> int:
        count = batch.n_tokens
        if batch.pos[:count] != list(range(len(self.cache), len(self.cache) + count)):
            return 1
        self.cache += batch.token[:count]
        self.calls.append(batch.token[:count])
        self.wanted_logits.append(sum(batch.logits[:count]))
        return 0

    def _log_set(self, callback: Any, data: None) -> None: ...

    def _synchronize(self, context: int) -> None: ...

    def _print_system_info(self) -> bytes:
        return b"AVX2 = 1 | AVX512 = 0 | "

    def _model_size(self, model: int) -> int:
        return TOTAL

    def _get_model_tensor(self, model: int, name: bytes) -> int:
        return {b"token_embd.weight": EMBEDDING}[name]

    def _kv_cache_seq_rm(self, context: int, sequence: int, start: int, end: int) -> bool:
        del self.cache[start:]
        return True

    def _state(self) -> bytes:
        count = len(self.cache)
        cells = b"".join(struct.pack("<iI", position, 0) for position in range(count))
        keys = b"".join(struct.pack("<i", token) for token in self.cache)
        rows = struct.pack("<IQ", 1, KEY_BYTES) + keys
        return struct.pack("<I", count) + cells + struct.pack("<2I", 0, 1) + rows + rows + bytes(4)

    def _state_seq_get_size(self, context: int, sequence: int, flags: int) -> int:
        return len(self._state())

    def _state_seq_get_data(self, context: int, buffer: Any, size: int, sequence: int, flags: int) -> int:
        ctypes.memmove(buffer, self._state(), size)
        return size

    def _state_seq_set_data(self, context: int, buffer: Any, size: int, sequence: int, flags: int) -> int:
        state = bytes(buffer)[:size]
        (count,) = struct.unpack_from("<I", state)
        start = 4 + 8 * count + 8 + 12
        self.cache = list(struct.unpack_from(f"<{count}i", state, start))
        return size if self._state() == state else 0


def function(method: Any) -> Any:
    """Return a function that, like a ctypes one, takes the attributes `argtypes` and `restype`."""
    return lambda *arguments: method(*arguments)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> FakeBindings:
    fake = FakeBindings()
    quantize = ModuleType("ik_llama_cpp.quantize")
    quantize.find_quantize_bin = lambda: None  # type: ignore[attr-defined]
    package = ModuleType("ik_llama_cpp")
    package._ctypes_api, package.quantize = fake, quantize  # type: ignore[attr-defined]
    for module in (package, fake, quantize):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


@pytest.fixture
def engine(bindings: FakeBindings) -> Iterator[Any]:
    yield importlib.import_module("benchmarks.ik_engine")
    sys.modules.pop("benchmarks.ik_engine")


def opened(engine: Any, *, size: int = 256) -> Any:
    model = engine.IkModel(Path("model.gguf"), repack=True, threads=3)
    return engine.IkContext(model, Setting("q8_0", "f16", True, True, 32), size)


def test_the_setting_reaches_the_library(engine: Any, bindings: FakeBindings) -> None:
    opened(engine)
    assert bindings.model_params.repack_tensors is True
    params = bindings.context_params
    assert (params.flash_attn, params.type_k, params.type_v) == (True, 8, 1)
    assert (params.n_ctx, params.n_ubatch, params.n_threads, params.n_threads_batch) == (256, 32, 3, 3)


def test_refusals_are_errors(engine: Any) -> None:
    with pytest.raises(RuntimeError, match=r"could not load broken\.gguf"):
        engine.IkModel(Path("broken.gguf"), repack=True, threads=1)
    with pytest.raises(RuntimeError, match=r"ik_llama\.cpp refuses Setting"):
        opened(engine, size=2000)


def test_prefill_and_decode_begin_where_they_should(engine: Any, bindings: FakeBindings) -> None:
    context = opened(engine)
    assert context.prefill(list(range(70))) > 0
    assert [len(call) for call in bindings.calls] == [32, 32, 6]
    assert bindings.wanted_logits == [0, 0, 1]
    assert context.decode(40, 5) > 0
    assert bindings.cache == [*range(40), *[0] * 6]
    context.prefill([7])
    assert bindings.cache == [7]
    context.close()
    assert bindings.freed == ["batch", "context"]


def test_a_cache_is_filled_with_copies(engine: Any, bindings: FakeBindings) -> None:
    context = opened(engine)
    assert context.fill(list(range(150)))
    assert bindings.cache == [*range(64), *range(64), *range(22)]
    assert sum(map(len, bindings.calls)) == 64
    context.decode(150, 1)
    assert len(bindings.cache) == 152


def test_another_saved_form_is_evaluated(engine: Any, bindings: FakeBindings, monkeypatch: pytest.MonkeyPatch) -> None:
    context = opened(engine)
    monkeypatch.setattr(context, "_save", lambda: b"another form")
    assert not context.fill(list(range(150)))
    assert bindings.cache == list(range(150))


def test_weights_are_read_once_per_token(engine: Any) -> None:
    model = engine.IkModel(Path("model.gguf"), repack=False, threads=1)
    assert model.bytes_per_token() == TOTAL - EMBEDDING


def test_about_names_version_and_instructions(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "version", lambda package: f"{package} 1.2")
    assert engine.about() == {"version": "ik-llama-cpp-python 1.2", "system_info": "AVX2 = 1 | AVX512 = 0 | "}


def test_a_package_without_its_program_cannot_quantise(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="install the package again"):
        engine.quantise(tmp_path / "in.gguf", tmp_path / "out.gguf", "IQ4_KS")
