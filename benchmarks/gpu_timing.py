"""Times on a GPU: copies, replayed graphs, and the launches of a decoder by stage."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from qwchat.cuda.decoder import CudaDecoder
from qwchat.cuda.device import OpenGpu
from qwchat.cuda.driver import Driver
from qwchat.cuda.kv_cache import CudaCache
from qwchat.cuda.launch import Launch, Step, run_all
from qwchat.cuda.memory import DeviceMemory, Stream
from qwchat.model.gpu_memory import DevicePart, gpu_memory, stored_tensors
from qwchat.model.tensor_source import TensorSource

ROUNDS = 7
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class StageTime:
    """Time of one kind of launch in a decode step.

    Attributes:
        stage: `qkv`, `attention`, `o_proj`, `gate_up`, `down_proj` or `head`.
        kernels: names of the kernels.
        seconds: median time of one launch, with the gap to the next one.
        weights: bytes of weights that it reads.
    """

    stage: str
    kernels: tuple[str, ...]
    seconds: float
    weights: int

    @property
    def bandwidth(self) -> float:
        """Bytes of weights per second."""
        return self.weights / self.seconds


def median_seconds(driver: Driver, stream: Stream, work: Callable[[], None], rounds: int = ROUNDS) -> float:
    """Return the median time of `work`, which puts work on the stream, after one round that is not measured."""
    events = driver.create_event(timed=True), driver.create_event(timed=True)
    try:
        times = []
        for _ in range(rounds + 1):
            driver.record_event(events[0], stream.handle)
            work()
            driver.record_event(events[1], stream.handle)
            driver.synchronise_event(events[1])
            times.append(driver.milliseconds(*events) / 1e3)
        return statistics.median(times[1:])
    finally:
        for event in events:
            driver.destroy_event(event)


@contextmanager
def captured(driver: Driver, stream: Stream, steps: Sequence[Step]) -> Iterator[Callable[[], None]]:
    """Capture steps into a graph, and yield a function that replays it."""
    driver.begin_capture(stream.handle)
    run_all(steps, driver, stream.handle)
    graph = driver.end_capture(stream.handle)
    executable = driver.instantiate(graph)
    driver.destroy_graph(graph)
    try:
        yield lambda: driver.launch_graph(executable, stream.handle)
    finally:
        driver.destroy_executable(executable)


def graph_seconds(driver: Driver, stream: Stream, steps: Sequence[Step]) -> float:
    """Return the median time of a graph of steps."""
    with captured(driver, stream, steps) as replay:
        return median_seconds(driver, stream, replay)


def copy_bandwidth(gpu: OpenGpu) -> float:
    """Return the bytes per second, read and written, of a copy of COPY_BYTES within the device's memory."""
    size = COPY_BYTES
    gpu.activate()
    memory, stream = DeviceMemory(gpu), Stream(gpu.driver)
    blocks = [memory.allocate(size, "copy") for _ in range(2)]
    try:
        source, target = (block.address for block in blocks)
        seconds = median_seconds(
            gpu.driver, stream, lambda: gpu.driver.copy_on_device(target, source, size, stream.handle)
        )
        return 2 * size / seconds
    finally:
        for block in blocks:
            memory.free(block)
        stream.destroy()


def launches_by_stage(decoder: CudaDecoder, cache: CudaCache, tokens: int) -> dict[str, list[Launch]]:
    """Return the launches of all layers of a pass, and of its head, by the name of their stage."""
    stages: dict[str, list[Launch]] = {}
    for layer in decoder.layers:
        projections = iter(("o_proj", "down_proj"))
        for launch in decoder.passes.decode.layer(layer, tokens, cache):
            name = launch.kernel.record.name
            stage = (
                "attention"
                if name.startswith("attend")
                else "gate_up"
                if name.startswith(("norm_gate_up", "silu"))
                else "qkv"
                if name.startswith("norm_gemv")
                else next(projections)
            )
            stages.setdefault(stage, []).append(launch)
    stages["head"] = list(decoder.passes.decode.head(tokens))
    return stages


def weights_by_stage(folder: TensorSource, context: int, kind: str) -> dict[str, int]:
    """Return the bytes of weights that all layers read in each stage."""
    config = folder.config
    arrays = gpu_memory(
        config, stored_tensors(config, folder.tensor), context, kind, DevicePart.whole(config)
    ).weight_arrays
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    words = {
        "qkv": ("qkv", "q_proj", "k_proj", "v_proj"),
        "o_proj": ("o_proj",),
        "gate_up": ("gate_up", "gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    }
    found = {
        stage: sum(
            array.allocated
            for array in arrays
            if array.name.startswith("model.layers.") and any(f".{word}" in array.name for word in named)
        )
        for stage, named in words.items()
    }
    return found | {"attention": 0, "head": sum(array.allocated for array in arrays if array.name == head)}


def stage_times(decoder: CudaDecoder, folder: TensorSource, cache: CudaCache, tokens: int = 1) -> list[StageTime]:
    """Return the time of each stage of a pass. The layers follow each other, so the L2 cache does not hold weights."""
    weights = weights_by_stage(folder, decoder.context, cache.kind)
    decoder.run_rows(np.arange(tokens), 0, 0, cache)  # Kernels read the number of tokens from the device.
    driver, stream = decoder.gpu.driver, decoder.passes.stream
    times = []
    for stage, launches in launches_by_stage(decoder, cache, tokens).items():
        seconds = graph_seconds(driver, stream, without_first_overlap(launches))
        count = 1 if stage == "head" else len(decoder.layers)
        kernels = tuple(dict.fromkeys(launch.kernel.record.name for launch in launches))
        times.append(StageTime(stage, kernels, seconds / count, weights[stage] // count))
    return times


def node_seconds(decoder: CudaDecoder, cache: CudaCache, *, overlap: bool) -> float:
    """Return the time of a launch in a graph of a model whose weights are too few to matter."""
    decoder.run_rows(np.arange(1), 0, 0, cache)
    launches = [
        replace(launch, overlap=launch.overlap and overlap)
        for layer in decoder.layers
        for launch in decoder.passes.decode.layer(layer, 1, cache)
    ]
    return graph_seconds(decoder.gpu.driver, decoder.passes.stream, without_first_overlap(launches)) / len(launches)


def without_first_overlap(launches: Iterable[Launch]) -> list[Launch]:
    """Return launches, the first one without overlap: nothing precedes it in its graph."""
    return [replace(launch, overlap=launch.overlap and index > 0) for index, launch in enumerate(launches)]
