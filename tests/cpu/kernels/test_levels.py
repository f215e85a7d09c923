"""SIMD levels: chosen, forced, refused, compiled to the right instructions, and with equal results."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import types
from numpy.typing import NDArray

from quant.errors import ArgumentError
from quant.native import simd_level
from quant.native.object_store import ObjectStore
from qwchat.cpu.kernels import dot_products, kernel_store, simd
from tests.cpu.kernels import emulated_neon, test_attention
from tests.cpu.kernels.numba_cached import kernel
from tests.cpu.kernels.random_tensors import KINDS, random_packed
from tests.cpu.kernels.test_matmul import multiply
from tests.cpu.kernels.test_row_kernels import quantised

ROOT = Path(__file__).resolve().parents[3]
PRINT_DIGEST = "from tests.cpu.kernels.test_levels import digest; print(digest())"


def _emit_products(builder: Any, out: Any, unsigned: Any, signed: Any) -> None:
    operands = [simd.emit_load(builder, address, simd.V64B) for address in (unsigned, signed)]
    total = simd.emit_load(builder, out, simd.V16I)
    simd.emit_store(builder, out, dot_products.emit_dot(builder, total, *operands))
    offset = dot_products.dot_offset(255)
    weights = dot_products.emit_offset(builder, operands[0], offset)
    beyond = builder.add(out, simd.I64(64))
    total = dot_products.emit_offset_dot(builder, simd.emit_load(builder, beyond, simd.V16I), weights, operands[1])
    missing = dot_products.emit_dot(builder, simd.constant(simd.V16I, 0), simd.constant(simd.V64B, offset), operands[1])
    simd.emit_store(builder, beyond, builder.add(total, missing))
    small = builder.and_(operands[0], simd.constant(simd.V64B, 127))
    last = builder.add(out, simd.I64(128))
    total = dot_products.emit_peak_dot(builder, simd.emit_load(builder, last, simd.V16I), small, operands[1])
    simd.emit_store(builder, last, total)


_products = simd.operation(types.void, (types.int64,) * 3, _emit_products)


@kernel
def _run_products(out, unsigned, signed):  # type: ignore[no-untyped-def]
    _products(out, unsigned, signed)


def products(rng: np.random.Generator) -> NDArray[np.int32]:
    """Return three dot products of 64 bytes, extremes among random ones, after a comparison with NumPy.

    The last one is of weights modulo 128.
    """
    results = []
    for weights in ((0, 255), (0, 2), (254, 256), (127, 130), (0, 256)):
        for values in ((-127, -126), (127, 128), (-127, 128)):
            unsigned = rng.integers(*weights, 64).astype(np.uint8)
            signed = rng.integers(*values, 64).astype(np.int8)
            start = rng.integers(-(2**20), 2**20, (3, 16)).astype(np.int32)
            found = start.copy()
            _run_products(found.ctypes.data, unsigned.ctypes.data, signed.ctypes.data)
            sums, small = (
                (factor.astype(np.int32) * signed).reshape(16, 4).sum(1) for factor in (unsigned, unsigned & 127)
            )
            assert np.array_equal(found, start + np.stack((sums, sums, small))), (
                simd_level.current_level(),
                weights,
                values,
            )
            results.append(found)
    return np.concatenate(results)


def digest() -> str:
    """Return a hash of results, to the last bit.

    It covers every format with 1 to 15 tokens of one and two terms, attention over both kinds of cache, and bare dot
    products.
    """
    rng = np.random.default_rng(11)
    total = hashlib.sha256(products(rng).tobytes())
    for kind in KINDS:
        packed = random_packed(kind, 48, 256, rng)
        x = rng.standard_normal((15, 256)).astype(np.float32)
        for tokens in (1, 2, 3, 4, 6, 8, 15):
            total.update(multiply(packed, x[:tokens]).tobytes())
        for tokens in (1, 3, 5):
            total.update(multiply(packed, x[:tokens], terms=2).tobytes())
        total.update(quantised(x, 2).tobytes())
    for cache_kind in test_attention.KINDS:
        cache, _, _ = test_attention.random_cache(cache_kind, (7, 1, 64), 600)
        query = rng.standard_normal((3, 7, 64)).astype(np.float32)
        total.update(cache.attend(query, 597).tobytes())
    return total.hexdigest()


Begun = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    """Return a function: level -> words that a process of that level prints.

    All processes start at once, since most of their time is spent compiling.
    """
    here = {name: (["-c", PRINT_DIGEST], {"QWCHAT_SIMD": name}) for name in simd_level.supported_levels()}
    elsewhere = (["-m", "tests.cpu.kernels.emulated_neon"], {"QWCHAT_CACHE": str(tmp_path_factory.mktemp("neon"))})
    processes = {
        name: subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (arguments, variables) in {**here, "emulated neon": elsewhere}.items()
    }

    def words(name: str) -> list[str]:
        out, err = processes[name].communicate()
        assert processes[name].returncode == 0, err
        return out.split()

    yield words
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("name", simd_level.supported_levels())
def test_levels_agree_to_the_last_bit(name: str, printed: Begun) -> None:
    assert printed(name) == [digest()]


@pytest.mark.slow
def test_neon_agrees_to_the_last_bit(printed: Begun) -> None:
    assert printed("emulated neon") == [digest(), emulated_neon.SDOT, emulated_neon.TBL]


@pytest.mark.parametrize(("value", "message"), [("sse9", "is not a SIMD level"), ("avx2", "needs CPU features")])
def test_a_level_that_cannot_run_is_refused(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_SIMD", value)
    monkeypatch.setattr(simd_level, "supported_levels", lambda: ("portable",))
    with pytest.raises(ArgumentError, match=message):
        simd_level.current_level.__wrapped__()


def test_the_cache_is_keyed_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    here = kernel_store.KERNELS.key
    other = next(name for name in simd_level.LEVELS if name != simd_level.current_level())
    monkeypatch.setattr(simd_level, "current_level", lambda: other)
    assert ObjectStore("kernels-", kernel_store.SOURCES).key != here


ALDER_LAKE = {"avx2": True, "fma": True, "f16c": True, "avxvnni": True, "avx512f": False}
NEOVERSE = {"neon": True, "dotprod": True, "fp-armv8": True}


@pytest.mark.parametrize(
    ("features", "levels"),
    [
        (ALDER_LAKE, ("avxvnni", "avx2", "portable")),
        (ALDER_LAKE | {"avxvnni": False}, ("avx2", "portable")),
        (NEOVERSE, ("neon", "portable")),
        (NEOVERSE | {"dotprod": False}, ("portable",)),
        ({}, ("portable",)),
    ],
)
def test_levels_follow_from_features(
    features: dict[str, bool], levels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simd_level, "host_features", lambda: features)
    assert simd_level.supported_levels.__wrapped__() == levels


def test_an_unknown_processor_is_portable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> dict[str, bool]:
        raise RuntimeError("failed to get host cpu features.")

    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", refuse)
    assert simd_level.host_features.__wrapped__() == {}
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert simd_level.architecture() == "aarch64"
    assert simd_level.host_features.__wrapped__() == {"neon": True, "dotprod": True}
