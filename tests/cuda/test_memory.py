"""Memory of the device and the host, and copies between them, on a driver that works as late as it may."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from qwchat.cuda.device import OpenGpu, find_gpus
from qwchat.cuda.host_access import HostAccess
from qwchat.cuda.memory import DeviceMemory, PinnedMemory, Stream, aligned, packed_bytes
from qwchat.cuda.upload import Uploader
from qwchat.errors import GpuMemoryError
from tests.cuda.fake_driver import CONTEXT_BYTES, FakeDriver
from tests.cuda.fake_memory import MisuseError


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(memory=CONTEXT_BYTES + (1 << 20))


@pytest.fixture
def gpu(driver: FakeDriver) -> Iterator[OpenGpu]:
    with OpenGpu(driver, find_gpus(driver)[0]) as opened:
        yield opened
    assert driver.leaked == []
    assert not driver.retained.total()


def test_bytes_are_counted_by_purpose(driver: FakeDriver, gpu: OpenGpu) -> None:
    memory = DeviceMemory(gpu)
    weights = memory.allocate(1000, "weights")
    memory.allocate(256, "weights")
    cache = memory.allocate(1, "cache")
    assert memory.bytes_by_purpose == {"weights": 1024 + 256, "cache": 256}
    assert sum(driver.device.live.values()) == 1024 + 256 + 256
    memory.free(cache)
    memory.free(cache)
    assert memory.bytes_by_purpose == {"weights": 1280}
    assert weights.parts([10, 300, 256]) == [weights.address, weights.address + 256, weights.address + 768]
    assert (packed_bytes([10, 300, 256]), aligned(0)) == (256 + 512 + 256, 0)
    with pytest.raises(ValueError, match="do not fit into 1,024 for weights"):
        weights.parts([1024, 1])


def test_memory_that_does_not_fit_is_an_error_and_the_device_stays_usable(gpu: OpenGpu) -> None:
    memory = DeviceMemory(gpu)
    with pytest.raises(GpuMemoryError, match="too little free memory"):
        memory.allocate((1 << 20) + 1, "weights")
    memory.allocate(1 << 20, "weights")
    assert gpu.free_bytes() == 0


def test_memory_of_a_deleted_owner_is_freed_by_the_next_allocation(gpu: OpenGpu) -> None:
    class Owner:
        pass

    memory, owner = DeviceMemory(gpu), Owner()
    allocation = memory.allocate(1 << 20, "cache")
    memory.on_delete(owner, lambda: memory.free(allocation))
    del owner
    gc.collect()
    assert memory.bytes_by_purpose == {"cache": 1 << 20}
    memory.allocate(1 << 19, "cache")
    assert memory.bytes_by_purpose == {"cache": 1 << 19}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 4096, 4097, 50_000])
def test_what_is_uploaded_is_downloaded(seed: int, size: int) -> None:
    driver = FakeDriver(seed=seed)
    seen: list[int] = []
    data = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    with OpenGpu(driver, find_gpus(driver)[0]) as gpu:
        memory = DeviceMemory(gpu)
        target = memory.allocate(2 * size, "weights")
        with Uploader(driver, buffer_bytes=4096, progress=seen.append) as uploader:
            uploader.upload(target.address, data)
            uploader.upload(target.address + size, data[::-1])
        stream = Stream(driver)
        gpu.on_close(stream.destroy)
        access = HostAccess(gpu, stream)
        assert (access.read(target.address, size) == data).all()
        assert (access.read(target.address + size, size) == data[::-1]).all()
        access.write(target.address, data[::-1])
        access.zero(target.address + size, size)
        assert (access.read(target.address, 2 * size) == np.concatenate([data[::-1], 0 * data])).all()
    assert sum(seen) == 2 * size
    assert driver.leaked == []


def test_a_large_piece_is_copied_by_several_threads(driver: FakeDriver) -> None:
    driver = FakeDriver()
    data = np.random.default_rng(0).integers(0, 256, (3 << 20) + 5).astype(np.uint8)
    with OpenGpu(driver, find_gpus(driver)[0]) as gpu:
        target = DeviceMemory(gpu).allocate(data.size, "weights")
        with Uploader(driver) as uploader:
            uploader.upload(target.address, data)
        assert (driver.device.bytes(target.address, data.size) == data).all()
    assert driver.leaked == []


def test_an_interrupted_upload_frees_its_buffers(driver: FakeDriver, gpu: OpenGpu) -> None:
    def interrupt(_size: int) -> None:
        raise KeyboardInterrupt

    target = DeviceMemory(gpu).allocate(10_000, "weights")
    with pytest.raises(KeyboardInterrupt), Uploader(driver, 4096, interrupt) as uploader:
        uploader.upload(target.address, np.zeros(10_000, np.uint8))
    assert driver.host.live == {}


def test_the_fake_driver_shows_a_buffer_that_is_overwritten_too_early(driver: FakeDriver, gpu: OpenGpu) -> None:
    target, stream, pinned = DeviceMemory(gpu).allocate(16, "x"), Stream(driver), PinnedMemory(driver, 16)
    driver.random.randrange = lambda _stop: 0  # type: ignore[assignment]
    pinned.bytes[:] = 1
    driver.copy_to_device(target.address, pinned.address, 16, stream.handle)
    pinned.bytes[:] = 2
    stream.synchronise()
    assert (driver.device.bytes(target.address, 16) == 2).all()
    driver.copy_to_device(target.address, pinned.address, 16, stream.handle)
    pinned.free()
    with pytest.raises(MisuseError, match="not in live pinned memory"):
        stream.synchronise()
    stream.destroy()


def test_the_fake_driver_shows_use_after_free_and_copies_that_are_too_long(driver: FakeDriver, gpu: OpenGpu) -> None:
    memory, stream, pinned = DeviceMemory(gpu), Stream(driver), PinnedMemory(driver, 512)
    first = memory.allocate(256, "x")
    with pytest.raises(MisuseError, match="exceed an allocation"):
        driver.copy_to_device(first.address, pinned.address, 512, stream.handle)
    memory.free(first)
    with pytest.raises(MisuseError, match="not in a live allocation"):
        driver.copy_to_host(pinned.address, first.address, 256, stream.handle)
    with pytest.raises(MisuseError, match="not in a live allocation"):
        driver.free(first.address)
    pinned.free()
    stream.destroy()
