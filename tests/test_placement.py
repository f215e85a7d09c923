"""Where a model runs: the choice between CPU and GPU, what happens if memory runs out, and the way back to the CPU.

A CPU decoder stands in for the one on the GPU; the driver is the fake one.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qwchat
from quant import convert
from quant.container import ModelFolder, open_model
from quant.formats import FORMATS
from qwchat import placement
from qwchat.cpu.decoder import CpuDecoder
from qwchat.cuda.driver_errors import error_of, no_driver
from qwchat.cuda.manifest import kernels
from qwchat.errors import GpuError, GpuLostError, GpuMemoryError, UsageError
from qwchat.events import Done
from qwchat.model.gpu_memory import CONTEXT_BYTES
from qwchat.model.split_decoder import SplitDecoder
from qwchat.placement import DeviceRequest, build_decoder, part_sizes, preview
from qwchat.request import SamplingParams
from tests.cuda.fake_driver import FakeDriver
from tests.quant.checkpoints import make_checkpoint

LAYERS = 2


class StandIn(CpuDecoder):
    """A CPU decoder with the GPU that it would run on; it fails when told to."""

    failure: Exception | None = None

    def __init__(self, gpu: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gpu = gpu

    def run(self, *arguments: Any, **options: Any) -> NDArray[np.float32]:
        if self.failure is not None:
            raise self.failure
        return super().run(*arguments, **options)

    def close(self) -> None:
        super().close()
        self.gpu.close()


class Gpus:
    """GPUs of the fake driver, and what was built on them.

    Attributes:
        driver: the fake driver.
        built: layers of each decoder that was asked for.
        capacity: most layers that fit in truth; more of them raise GpuMemoryError.
        decoders: the decoders that were built.
    """

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.built: list[range] = []
        self.capacity = 100
        self.decoders: list[StandIn] = []

    def build(
        self, folder: ModelFolder, gpu: Any, *, context: int | None, kv: str, layers: range, progress: Any
    ) -> StandIn:
        """Stand in for `placement.build_gpu_decoder`."""
        if progress is not None:
            progress(1000, 1500)
            progress(1500, 1500)
        self.built.append(layers)
        if len(layers) > self.capacity:
            gpu.close()
            raise error_of(2, "cuMemAlloc_v2")
        self.decoders.append(StandIn(gpu, folder, context=context or 64, threads=1, kv=kv, layers=layers))
        return self.decoders[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Return a converted model of LAYERS layers."""
    path = tmp_path_factory.mktemp("placement")
    shapes = {"hidden_size": 128, "max_position_embeddings": 512}
    list(convert(make_checkpoint(path / "tiny", config_overrides=shapes), path / "tiny-q4"))
    return open_model(path / "tiny-q4")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    """Return one GPU with plenty of memory, and let small models use it."""
    found = Gpus(FakeDriver())
    monkeypatch.setattr(placement, "_libcuda", lambda: found.driver)
    monkeypatch.setattr(placement, "build_gpu_decoder", found.build)
    monkeypatch.setattr(placement, "LEAST_BYTES", 0)
    yield found
    assert not found.driver.retained.total(), "every context was released"


def place(folder: ModelFolder, device: str = "auto", gpu_layers: int | None = None) -> tuple[str, int, str]:
    """Build a decoder and close it; return the device, the layers on the GPU, and the reason."""
    decoder, placed = build_decoder(folder, DeviceRequest(device, gpu_layers), context=64, threads=1)
    kind = SplitDecoder if 0 < placed.gpu_layers < LAYERS else StandIn if placed.gpu_layers else CpuDecoder
    assert type(decoder) is kind
    decoder.close()
    return placed.device, placed.gpu_layers, placed.reason


def limit(gpus: Gpus, folder: ModelFolder, layers: int) -> None:
    """Give the GPU the memory of `layers` layers and not one byte more."""
    sizes = part_sizes(folder, 64, "auto")
    needed = sizes.whole.total if layers == LAYERS else sizes.totals[layers]
    gpus.driver.memory = needed + placement._SPARE_BYTES


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_model_that_fits_runs_on_the_gpu(folder: ModelFolder, gpus: Gpus, device: str) -> None:
    assert place(folder, device) == ("cuda:0", LAYERS, "the model fits")
    limit(gpus, folder, LAYERS)
    assert place(folder, device) == ("cuda:0", LAYERS, "the model fits")
    assert gpus.built == [range(LAYERS)] * 2


def test_the_last_layers_run_there_if_not_all_fit(folder: ModelFolder, gpus: Gpus) -> None:
    limit(gpus, folder, LAYERS)
    gpus.driver.memory -= 1
    device, layers, reason = place(folder)
    assert (device, layers) == ("cuda:0", 1)
    assert reason.endswith(f"of GPU memory hold 1 of {LAYERS} layers")
    assert gpus.built == [range(1, 2)]


def test_no_call_of_the_driver_is_made_for_the_cpu(folder: ModelFolder, gpus: Gpus) -> None:
    for device, layers in (("cpu", None), ("auto", 0), ("cuda", 0), ("cpu", 0)):
        assert place(folder, device, layers) == ("cpu", 0, "")
    assert gpus.driver.log == []


def test_small_models_stay_on_the_cpu(folder: ModelFolder, gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "LEAST_BYTES", folder.total_bytes + 1)
    assert place(folder) == ("cpu", 0, "the model is small")
    assert gpus.driver.log == []
    assert place(folder, "cuda")[0] == "cuda:0", "unless the user asks for it"
    assert place(folder, "auto", 1)[:2] == ("cuda:0", 1)


def test_without_a_driver_auto_is_the_cpu(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> FakeDriver:
        raise no_driver("libcuda.so.1")

    monkeypatch.setattr(placement, "_libcuda", nothing)
    monkeypatch.setattr(placement, "LEAST_BYTES", 0)
    assert place(folder) == ("cpu", 0, "there is no NVIDIA driver (libcuda.so.1 was not found)")
    for device, layers in (("cuda", None), ("auto", 1), ("cuda:1", None)):
        with pytest.raises(GpuError, match="there is no NVIDIA driver"):
            place(folder, device, layers)


def test_too_little_memory_is_the_cpu_or_an_error(folder: ModelFolder, gpus: Gpus) -> None:
    limit(gpus, folder, 0)
    device, layers, reason = place(folder)
    assert (device, layers) == ("cpu", 0)
    assert reason.endswith(f"hold 0 of {LAYERS} layers")
    with pytest.raises(GpuMemoryError, match=r"^1 layer on the GPU need .*: use device='cpu', or a smaller context$"):
        place(folder, "cuda")
    limit(gpus, folder, 1)
    with pytest.raises(GpuMemoryError, match=r"^all layers on the GPU need .*: use gpu_layers=1, or "):
        place(folder, "cuda", 99)
    gpus.driver.memory = CONTEXT_BYTES - 1
    assert place(folder)[0] == "cpu"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_wanted_number_of_layers_is_used(folder: ModelFolder, gpus: Gpus, layers: int) -> None:
    assert place(folder, "auto", layers) == ("cuda:0", layers, "")
    assert gpus.built == [range(LAYERS - layers, LAYERS)]


def test_fewer_layers_are_tried_if_memory_runs_out(folder: ModelFolder, gpus: Gpus) -> None:
    gpus.capacity = 1
    assert place(folder) == ("cuda:0", 1, "the GPU's memory ran out with more layers")
    assert [len(layers) for layers in gpus.built] == [2, 1]
    gpus.capacity = 0
    with pytest.raises(GpuMemoryError):
        place(folder, "cuda")
    assert place(folder)[:2] == ("cpu", 0)
    with pytest.raises(GpuMemoryError):
        place(folder, "auto", 2)


def test_the_gpu_with_the_wanted_number_is_used(folder: ModelFolder, gpus: Gpus) -> None:
    gpus.driver.count = 2
    assert place(folder, "cuda:1")[0] == "cuda:1"
    with pytest.raises(UsageError, match=r"device='cuda:2' does not exist: choose from cuda:0 \(NVIDIA Fake\), cuda:1"):
        place(folder, "cuda:2")


@pytest.mark.parametrize(
    ("device", "layers", "message"),
    [
        ("tpu", None, "device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
        ("cuda:", None, "device must be auto, cpu, cuda or cuda:N, not 'cuda:'"),
        ("cpu:0", None, "device must be auto, cpu, cuda or cuda:N, not 'cpu:0'"),
        ("auto", -1, "gpu_layers must be at least 0, not -1"),
        ("cpu", 3, "gpu_layers=3 needs a GPU: use device='cuda'"),
    ],
)
def test_impossible_requests_are_refused(device: str, layers: int | None, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        DeviceRequest(device, layers)
    assert str(raised.value) == message


def reply(model: qwchat.Model) -> str:
    """Return a greedy reply of 8 tokens."""
    settings = SamplingParams(temperature=0.0)
    *_, done = model.generate("abcabc", settings=settings, max_tokens=8, seed=0)
    assert isinstance(done, Done)
    return done.text


def test_a_model_moves_between_devices(folder: ModelFolder, gpus: Gpus) -> None:
    with qwchat.load(folder.path, threads=1, context=64, device="cpu", verify=False) as model:
        expected = reply(model)
        cached = model.cached_context.length
        assert (model.device, model.gpu_layers, model.placement.description) == ("cpu", 0, "CPU")
        for device, layers, wanted, words in (
            ("cuda", None, ("cuda:0", 2), "NVIDIA Fake (all 2 layers)"),
            ("auto", 1, ("cuda:0", 1), "CPU and NVIDIA Fake (1 of 2 layers)"),
            ("cpu", None, ("cpu", 0), "CPU"),
        ):
            lost = model.reconfigure(threads=1, context=64, device=device, gpu_layers=layers)
            assert lost in (0, cached)
            assert (model.device, model.gpu_layers) == wanted
            assert model.placement.description == words
            assert reply(model) == expected
        assert model.reconfigure(threads=1, context=48) == 0, "on the CPU, tokens stay cached"
        assert model.device == "cpu"


def test_a_failed_move_leaves_the_model_on_the_gpu(folder: ModelFolder, gpus: Gpus) -> None:
    with qwchat.load(folder.path, threads=1, context=64, device="cuda", verify=False) as model:
        expected = reply(model)
        with pytest.raises(UsageError, match="context must be from 1 to"):
            model.reconfigure(threads=1, context=10**7)
        assert (model.device, model.context) == ("cuda:0", 64)
        assert reply(model) == expected


@pytest.mark.parametrize("layers", [1, 2])
def test_after_a_lost_context_the_cpu_replies(folder: ModelFolder, gpus: Gpus, layers: int) -> None:
    with qwchat.load(folder.path, threads=1, context=64, device="cuda", gpu_layers=layers, verify=False) as model:
        expected = reply(model)
        lost = error_of(700, "cuStreamSynchronize")
        last = gpus.decoders[-1]
        last.failure = lost
        last.run_layers = lambda *arguments, **options: (_ for _ in ()).throw(lost)  # type: ignore[method-assign]
        with pytest.raises(GpuLostError) as raised:
            reply(model)
        assert str(raised.value) == (
            "the GPU stopped: illegal address (CUDA error 700 in cuStreamSynchronize): the next reply runs on the CPU"
        )
        assert (model.device, model.cached_context.length) == ("cpu", 0)
        assert reply(model) == expected


def test_a_damaged_tokenizer_closes_the_gpu(folder: ModelFolder, gpus: Gpus, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(qwchat.errors.ModelError):
        qwchat.load(copy, threads=1, context=64, device="cuda", verify=False)


def test_a_model_with_formats_of_the_cpu_stays_there(folder: ModelFolder, gpus: Gpus, tmp_path: Path) -> None:
    """Change the manifest only: what runs where is decided before a weight is read."""
    manifest = deepcopy(folder.manifest)
    for name, stored in (("model.layers.0.mlp.up_proj.weight", "k4"), ("model.layers.1.mlp.up_proj.weight", "iq4")):
        manifest["tensors"][name]["format"] = stored
    imported = ModelFolder(tmp_path, folder.config, manifest, folder.fingerprint)
    reason = "its tensors of the formats k4, iq4 need the CPU"
    assert preview(imported, lambda: gpus.driver).explanation == f"CPU: {reason}"
    for device, layers in (("cuda", None), ("cuda:0", None), ("auto", 1)):
        with pytest.raises(GpuError, match=rf"^{tmp_path} cannot use a GPU: {reason}; use device='cpu'$"):
            build_decoder(imported, DeviceRequest(device, layers))
    assert gpus.driver.log == []


def test_auto_runs_such_a_model_on_the_cpu(folder: ModelFolder, gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "q4", replace(FORMATS["q4"], gpu=False))
    assert place(folder) == ("cpu", 0, "its tensors of the format q4 need the CPU")
    assert gpus.driver.log == []


@pytest.mark.parametrize(("device", "layers"), [("cuda", None), ("auto", 1)])
def test_activations_of_16_bits_are_refused_on_a_gpu(
    folder: ModelFolder, gpus: Gpus, device: str, layers: int | None
) -> None:
    reason = "activations of 16 bits need the CPU"
    with pytest.raises(GpuError, match=rf"^{folder.path} cannot use a GPU: {reason}; use device='cpu'$"):
        build_decoder(folder, DeviceRequest(device, layers), activations=16)
    assert gpus.driver.log == []


def test_auto_runs_activations_of_16_bits_on_the_cpu(folder: ModelFolder, gpus: Gpus, tmp_path: Path) -> None:
    assert preview(folder, lambda: gpus.driver, activations=16).explanation == (
        "CPU: activations of 16 bits need the CPU"
    )
    with qwchat.load(folder.path, threads=1, context=64, activations=16, verify=False) as model:
        assert (model.device, model.activations) == ("cpu", 16)
        assert model.reconfigure(threads=1, context=64, activations=8) == 0
        assert (model.device, model.activations) == ("cuda:0", 8)
    assert gpus.built == [range(LAYERS)]


def test_without_integers_the_activations_do_not_matter(folder: ModelFolder, gpus: Gpus, tmp_path: Path) -> None:
    list(convert(folder.path.parent / "tiny", tmp_path / "dense", preset="dense"))
    decoder, placed = build_decoder(
        open_model(tmp_path / "dense"), DeviceRequest("cuda"), context=64, threads=1, activations=16
    )
    decoder.close()
    assert placed.device == "cuda:0"


def test_records_know_which_formats_have_kernels_for_a_gpu() -> None:
    compiled = {name.removeprefix("embed_") for name in kernels() if name.startswith("embed_")}
    widened = {name for name, fmt in FORMATS.items() if fmt.widened}
    assert {name for name, fmt in FORMATS.items() if fmt.gpu} == compiled | {"vector"} | widened
