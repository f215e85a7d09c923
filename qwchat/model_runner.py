"""A model on its devices: the engine, the KV cache, and changes of both while a program runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quant.container import ModelFolder
from qwchat.errors import GpuLostError
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.engine import Engine
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.model.context_limits import context_limit
from qwchat.placement import DeviceRequest, DriverFactory, Placement, UploadProgress, build_decoder


@dataclass(frozen=True)
class EngineOptions:
    """Options of a decoder.

    Attributes:
        devices: the devices that may compute.
        threads: threads of the CPU; None for one per physical core.
        context: positions of the KV cache; None for the model's, at most 4,096.
        kv: kind of the KV cache, `f32`, `q8` or `auto`.
        activations: bits of the activations in products with integer formats, 8 or 16.
        progress: called while weights are copied to a GPU.
    """

    devices: DeviceRequest = field(default_factory=DeviceRequest)
    threads: int | None = None
    context: int | None = None
    kv: str = "auto"
    activations: int = DEFAULT_ACTIVATIONS
    progress: UploadProgress | None = None


class ModelRunner:
    """A model on its devices: engine, KV cache, and the properties of both. It knows no text.

    Args:
        folder: the model.
        options: how to run it.
        make_driver: makes the driver of the GPUs; see `qwchat.placement.build_decoder`.

    Attributes:
        folder: the model.
        config: its shapes.
        engine: generates tokens.
        cached_context: the KV cache and the tokens that it holds.
        placement: where the layers run.
        host: "", because the model runs in this process and not on a server.

    Raises:
        UsageError: an option is out of range.
        GpuError: the options ask for a GPU that cannot be used.
        NotEnoughMemoryError: the weights, the KV cache or the work space do not fit.
    """

    host = ""

    def __init__(self, folder: ModelFolder, options: EngineOptions, make_driver: DriverFactory | None = None) -> None:
        self.folder, self.config = folder, folder.config
        self._make_driver = make_driver
        self._install(options)

    @property
    def context(self) -> int:
        """Size of the context window in tokens, for prompt and reply together."""
        return self.engine.decoder.context

    @property
    def longest_context(self) -> int:
        """Longest context window that the model supports, in tokens."""
        return context_limit(self.config)

    @property
    def threads(self) -> int:
        """Number of compute threads."""
        return self.engine.decoder.threads

    @property
    def device(self) -> str:
        """Device that computes, `cpu` or `cuda:N`."""
        return self.placement.device

    @property
    def gpu_layers(self) -> int:
        """Number of layers that run on the GPU."""
        return self.placement.gpu_layers

    @property
    def kv(self) -> str:
        """Format of the KV cache: `f32` or `q8`, on a GPU `f16` or `q8`, and both if layers run on both."""
        return self.cached_context.cache.kind

    @property
    def activations(self) -> int:
        """Bits of the activations in products with integer formats, 8 or 16."""
        return self._options.activations

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        """Token ids (positions,) in the KV cache."""
        return self.cached_context.ids

    @property
    def cache_bytes(self) -> int:
        """Size in bytes of the file that `save_cache` would write."""
        return self.cached_context.snapshot_bytes()

    @property
    def reevaluation_seconds(self) -> float:
        """Estimated seconds to evaluate `cached_ids` again, at the speed measured so far; 0 before any prefill."""
        return self.cached_context.reevaluation_seconds

    def _install(self, options: EngineOptions) -> None:
        """Build and use a decoder."""
        cached, placement = self._build(options)
        self._use(options, cached, placement)

    def _use(self, options: EngineOptions, cached: CachedContext, placement: Placement) -> None:
        self._options, self.placement = options, placement
        self.engine, self.cached_context = Engine(cached.decoder), cached

    def _build(self, options: EngineOptions) -> tuple[CachedContext, Placement]:
        """Return an empty context of a new decoder, and where that runs."""
        decoder, placement = build_decoder(
            self.folder,
            options.devices,
            threads=options.threads,
            context=options.context,
            kv=options.kv,
            activations=options.activations,
            progress=options.progress,
            make_driver=self._make_driver,
        )
        try:
            return CachedContext(decoder), placement
        except BaseException:
            decoder.close()
            raise

    def reconfigure(
        self,
        *,
        threads: int | None = None,
        context: int | None = None,
        kv: str = "auto",
        activations: int = DEFAULT_ACTIVATIONS,
        device: str | None = None,
        gpu_layers: int | None = None,
    ) -> int:
        """Change arguments of `qwchat.load`, and return how many tokens must be evaluated again.

        Without `device` the model stays where it is. On the CPU, cached tokens are kept if the cache format and the
        activations stay the same and they fit. A GPU seldom holds a model twice, so it is freed first. Raises what
        `qwchat.load` raises for these arguments; the model runs as before then.
        """
        devices = self._options.devices if device is None else DeviceRequest(device, gpu_layers)
        options = replace(
            self._options, devices=devices, threads=threads, context=context, kv=kv, activations=activations
        )
        tokens = self.cached_context.length
        if self.placement.gpu is not None:
            previous = self._options
            self.engine.decoder.close()
            try:
                self._install(options)
            except BaseException:
                self._install(previous)
                raise
            return tokens
        cached, placement = self._build(options)
        kept = cached.copy_from(self.cached_context)
        self.engine.decoder.close()
        self._use(options, cached, placement)
        return tokens - kept

    def make_context(self) -> CachedContext:
        """Return an empty KV cache for another conversation. Raises NotEnoughMemoryError.

        It belongs to the decoder, which `reconfigure` and `leave_gpu` replace.
        """
        return CachedContext(self.engine.decoder)

    def leave_gpu(self, error: GpuLostError) -> GpuLostError:
        """Run the model on the CPU from now on; return the error to report.

        Nothing is cached afterwards: the keys and values on the GPU are lost. Raises what `qwchat.load` raises.
        """
        self.engine.decoder.close()
        options = replace(self._options, devices=DeviceRequest("cpu"))
        self._install(options)
        return GpuLostError(f"{str(error).partition(': restart')[0]}: the next reply runs on the CPU")

    def close(self) -> None:
        """Close the decoder."""
        self.engine.decoder.close()
