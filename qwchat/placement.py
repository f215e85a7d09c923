"""Choose where a model runs, the CPU, a GPU or both, and build its decoder there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from quant.container import ModelFolder
from quant.formats import find_format
from quant.units import data_size
from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.cpu.build import build_decoder as build_cpu_decoder
from qwchat.errors import GpuError, GpuMemoryError, UsageError
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.model.context_limits import choose_context
from qwchat.model.decoder import Decoder

if TYPE_CHECKING:
    from qwchat.cpu.decoder import CpuDecoder
    from qwchat.cuda.device import Gpu, OpenGpu
    from qwchat.cuda.driver import Driver
    from qwchat.model.gpu_memory import PartSizes

LEAST_BYTES = 64 << 20
"""Smaller models stay on the CPU with `auto`: they have answered before a context on a GPU is open."""
LEAST_SHARE = 1 / 8
"""With a smaller share of the layers on the GPU, `auto` takes the CPU alone."""
_SPARE_BYTES = 64 << 20
"""Memory of the GPU that is left free: allocations are rounded up, and displays use a little."""

_SMALL = "the model is small"

DriverFactory = Callable[[], "Driver"]
UploadProgress = Callable[[int, int], None]
"""Called with the bytes of weights that were copied to a GPU, and with the bytes of all of them."""


class Placement(NamedTuple):
    """Where the layers of a model run.

    Attributes:
        num_layers: layers of the model.
        gpu_layers: how many of them, the last ones, run on the GPU, with the head.
        gpu: the GPU; None if the CPU runs everything.
        reason: why, as a clause; empty if the user asked for it.
    """

    num_layers: int
    gpu_layers: int = 0
    gpu: Gpu | None = None
    reason: str = ""

    @property
    def device(self) -> str:
        """Name of the device as a setting, `cpu` or `cuda:N`."""
        return "cpu" if self.gpu is None else f"cuda:{self.gpu.index}"

    @property
    def explanation(self) -> str:
        """The devices with the reason, such as `CPU: the model is small`."""
        return f"{self.description}: {self.reason}" if self.reason else self.description

    @property
    def description(self) -> str:
        """The devices in words, such as `CPU` or `NVIDIA H200 (all 28 layers)`."""
        if self.gpu is None:
            return "CPU"
        if self.gpu_layers == self.num_layers:
            return f"{self.gpu.name} (all {self.num_layers} layers)"
        return f"CPU and {self.gpu.name} ({self.gpu_layers} of {self.num_layers} layers)"


@dataclass(frozen=True)
class DeviceRequest:
    """The devices that a user allows.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        gpu_layers: how many layers to run on the GPU; None for as many as fit.

    Raises:
        UsageError: the device is unknown, or layers are wanted on a GPU that is not allowed.
    """

    device: str = "auto"
    gpu_layers: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        name, colon, index = self.device.partition(":")
        if name not in ("auto", "cpu", "cuda") or (colon and (name != "cuda" or not index.isdecimal())):
            raise UsageError(
                ArgumentMessage(Argument("device"), f" must be auto, cpu, cuda or cuda:N, not {self.device!r}")
            )
        if self.gpu_layers is not None and self.gpu_layers < 0:
            raise UsageError(ArgumentMessage(Argument("gpu_layers"), f" must be at least 0, not {self.gpu_layers}"))
        if self.device == "cpu" and self.gpu_layers:
            raise UsageError(
                ArgumentMessage(
                    Argument("gpu_layers", self.gpu_layers), " needs a GPU: use ", SuggestedArgument("device", "cuda")
                )
            )

    @property
    def allows_gpu(self) -> bool:
        """Whether a GPU may be used at all."""
        return self.device != "cpu" and self.gpu_layers != 0

    @property
    def needs_gpu(self) -> bool:
        """Whether the CPU alone is not what the user asked for."""
        return self.allows_gpu and (self.device != "auto" or self.gpu_layers is not None)

    @property
    def index(self) -> int | None:
        """Number of the wanted GPU; None for any."""
        index = self.device.partition(":")[2]
        return int(index) if index else None


def build_decoder(
    folder: ModelFolder,
    request: DeviceRequest,
    *,
    threads: int | None = None,
    context: int | None = None,
    kv: str = "auto",
    activations: int = DEFAULT_ACTIVATIONS,
    progress: UploadProgress | None = None,
    make_driver: DriverFactory | None = None,
) -> tuple[Decoder, Placement]:
    """Build the decoder of a model where it runs fastest, among the devices that the user allows.

    Without a GPU, `auto` means the CPU. If the model does not fit on the GPU, its last layers run there, and if the
    memory still runs out, fewer of them.

    Args:
        folder: the model.
        request: the devices that the user allows.
        threads: threads of the CPU.
        context: positions of each KV cache.
        kv: kind of the KV caches.
        activations: bits of the activations in products with integer formats. Only the CPU computes with 16.
        progress: called while weights are copied to a GPU.
        make_driver: makes the driver of the GPUs; by default a `LibCuda`. It is not called if no GPU is allowed.

    Returns:
        The decoder and where it runs.

    Raises:
        UsageError: a value is out of range.
        ModelError: the kernels cannot run the model.
        GpuError: the user asked for a GPU that cannot be used.
        NotEnoughMemoryError: there is not enough memory, on the GPU if the user asked for it.
    """

    def on_cpu(reason: str = "") -> tuple[Decoder, Placement]:
        decoder = build_cpu_decoder(folder, threads=threads, context=context, kv=kv, activations=activations)
        return decoder, Placement(folder.config.num_layers, reason=reason)

    if not request.allows_gpu:
        return on_cpu()
    if not request.needs_gpu and folder.total_bytes < LEAST_BYTES:
        return on_cpu(_SMALL)
    if reason := _cpu_reason(folder, activations):
        if request.needs_gpu:
            remedy = SuggestedArgument("device", "cpu")
            raise GpuError(ArgumentMessage(f"{folder.path} cannot use a GPU: {reason}; use ", remedy))
        return on_cpu(reason)
    try:
        gpu = open_gpu(request, make_driver)
    except (GpuError, GpuMemoryError) as error:
        if request.needs_gpu:
            raise
        return on_cpu(_clause(error))
    try:
        sizes = part_sizes(folder, context, kv)
        from qwchat.model.gpu_memory import CONTEXT_BYTES

        placed = _choose_layers(sizes, request, gpu.gpu, gpu.free_bytes() + CONTEXT_BYTES - _SPARE_BYTES)
    except BaseException:
        gpu.close()
        raise
    if placed.gpu is None:
        gpu.close()
        return on_cpu(placed.reason)
    build = _GpuBuild(folder, request, threads, context, kv, progress)
    return build.decoder(gpu, placed)


def preview(
    folder: ModelFolder, make_driver: DriverFactory | None = None, activations: int = DEFAULT_ACTIVATIONS
) -> Placement:
    """Return where `auto` would run a model with its default context, if the GPU's memory were free."""
    from qwchat.cuda.device import find_gpus, select_gpu

    count = folder.config.num_layers
    if folder.total_bytes < LEAST_BYTES:
        return Placement(count, reason=_SMALL)
    if reason := _cpu_reason(folder, activations):
        return Placement(count, reason=reason)
    try:
        gpu = select_gpu(find_gpus((make_driver or _libcuda)()), None)
    except GpuError as error:
        return Placement(count, reason=_clause(error))
    return _choose_layers(part_sizes(folder, None, "auto"), DeviceRequest(), gpu, gpu.total_memory - _SPARE_BYTES)


def _cpu_reason(folder: ModelFolder, activations: int) -> str:
    """Return why a GPU cannot run a model, as a clause; empty if it can."""
    formats = [find_format(name) for name in folder.formats]
    if activations != DEFAULT_ACTIVATIONS and any(fmt.kernel == "integer" for fmt in formats):
        return f"activations of {activations} bits need the CPU"
    names = [fmt.name for fmt in formats if not fmt.gpu]
    if not names:
        return ""
    if len(names) == 1:
        return f"its tensors of the format {names[0]} need the CPU"
    return f"its tensors of the formats {', '.join(names)} need the CPU"


def part_sizes(folder: ModelFolder, context: int | None, kv: str) -> PartSizes:
    """Return the memory that each part of a model needs on a GPU. Raises UsageError for a bad context."""
    from qwchat.model.gpu_memory import PartSizes, choose_kv_kind, stored_tensors

    config = folder.config
    positions = choose_context(config, context)
    tensors = stored_tensors(config, folder.tensor)
    return PartSizes(config, tensors, positions, choose_kv_kind(kv, config, positions))


def open_gpu(request: DeviceRequest, make_driver: DriverFactory | None = None) -> OpenGpu:
    """Open a GPU that the user allows.

    Raises:
        GpuError: the machine has no GPU, or it cannot be used.
        GpuMemoryError: it has no memory for a context.
        UsageError: no GPU has the wanted number.
    """
    driver = (make_driver or _libcuda)()
    from qwchat.cuda.device import OpenGpu, find_gpus, select_gpu

    return OpenGpu(driver, select_gpu(find_gpus(driver), request.index))


def build_gpu_decoder(
    folder: ModelFolder,
    gpu: OpenGpu,
    *,
    context: int | None,
    kv: str,
    layers: range,
    progress: UploadProgress | None,
) -> Decoder:
    """Return a decoder of some layers on a GPU, which it closes. Raises ModelError, GpuError and GpuMemoryError."""
    from qwchat.cuda.build import build_decoder

    return build_decoder(folder, gpu, context=context, kv=kv, layers=layers, progress=progress)


def _libcuda() -> Driver:
    from qwchat.cuda.library import load_library

    load_library()  # Without a driver nothing else is imported, so that the start takes no longer.
    from qwchat.cuda.libcuda import LibCuda

    return LibCuda()


def _choose_layers(sizes: PartSizes, request: DeviceRequest, gpu: Gpu, memory: int) -> Placement:
    """Return where the layers run if the GPU has `memory` bytes for the process.

    Raises:
        GpuMemoryError: the layers that the user wants do not fit, or not a single one.
    """
    count = len(sizes.totals) - 1
    largest = sizes.largest(memory)
    # Without the embedding on the GPU, the CPU has to have a layer, too.
    fitting = count if largest == sizes.whole.part else min(len(largest.layers), count - 1)
    wanted = request.gpu_layers
    if wanted is not None:
        wanted = min(wanted, count)
        if wanted > fitting:
            raise _too_many_layers(sizes, wanted, fitting, memory)
        return Placement(count, wanted, gpu)
    if fitting == count:
        return Placement(count, count, gpu, "the model fits")
    held = f"{data_size(memory)} of GPU memory hold {fitting} of {count} layers"
    if not request.needs_gpu and fitting < count * LEAST_SHARE:
        return Placement(count, reason=held)
    if not fitting:
        raise _too_many_layers(sizes, 1, 0, memory)
    return Placement(count, fitting, gpu, held)


def _too_many_layers(sizes: PartSizes, wanted: int, fitting: int, memory: int) -> GpuMemoryError:
    every = wanted == len(sizes.totals) - 1
    layers = "all layers" if every else "1 layer" if wanted == 1 else f"{wanted} layers"
    needed = sizes.whole.total if every else sizes.totals[wanted]
    problem = f"{layers} on the GPU need {data_size(needed)} of its memory, but only {data_size(memory)} are free"
    remedy = SuggestedArgument("gpu_layers", fitting) if fitting else SuggestedArgument("device", "cpu")
    return GpuMemoryError(ArgumentMessage(f"{problem}: use ", remedy, ", or a smaller ", Argument("context")))


class _GpuBuild:
    """Arguments of `build_decoder` once a GPU is open. A plain class, since a start makes it without a GPU as well."""

    def __init__(
        self,
        folder: ModelFolder,
        request: DeviceRequest,
        threads: int | None,
        context: int | None,
        kv: str,
        progress: UploadProgress | None,
    ) -> None:
        self.folder, self.request, self.progress = folder, request, progress
        self.threads, self.context, self.kv = threads, context, kv

    def decoder(self, gpu: OpenGpu, placed: Placement) -> tuple[Decoder, Placement]:
        """Build the decoder of a placement, with fewer layers on the GPU if its memory still runs out."""
        from qwchat.cuda.device import OpenGpu

        request = self.request
        while True:
            try:
                return self._assemble(gpu, placed), placed
            except GpuMemoryError as error:
                fewer = placed.gpu_layers * 3 // 4
                if request.needs_gpu and (request.gpu_layers is not None or not fewer):
                    raise
                if not request.needs_gpu and fewer < placed.num_layers * LEAST_SHARE:
                    return self._rest(None), Placement(placed.num_layers, reason=_clause(error))
                placed = placed._replace(gpu_layers=fewer, reason="the GPU's memory ran out with more layers")
            gpu = OpenGpu(gpu.driver, gpu.gpu)

    def _assemble(self, gpu: OpenGpu, placed: Placement) -> Decoder:
        """Build the decoder of a placement on an open GPU, which the decoder closes; it is also closed on errors."""
        first = placed.num_layers - placed.gpu_layers
        layers = range(first, placed.num_layers)
        try:
            last = build_gpu_decoder(
                self.folder, gpu, context=self.context, kv=self.kv, layers=layers, progress=self.progress
            )
        except BaseException:
            gpu.close()
            raise
        if not first:
            return last
        try:
            from qwchat.model.split_decoder import SplitDecoder

            return SplitDecoder(self._rest(range(first)), last)
        except BaseException:
            last.close()
            raise

    def _rest(self, layers: range | None) -> CpuDecoder:
        """Build the decoder on the CPU of some layers, or of all."""
        return build_cpu_decoder(self.folder, threads=self.threads, context=self.context, kv=self.kv, layers=layers)


def _clause(error: Exception) -> str:
    """Return what an error says, without its remedy."""
    return str(error).partition(":")[0]
