"""Build a decoder on a GPU from the user's options."""

from __future__ import annotations

from qwchat.cuda.decoder import CudaDecoder, Progress
from qwchat.cuda.device import OpenGpu
from qwchat.model.context_limits import choose_context
from qwchat.model.gpu_memory import DevicePart, choose_kv_kind
from qwchat.model.tensor_source import TensorSource


def build_decoder(
    folder: TensorSource,
    gpu: OpenGpu,
    *,
    context: int | None = None,
    kv: str = "auto",
    layers: range | None = None,
    progress: Progress | None = None,
) -> CudaDecoder:
    """Return a decoder of a model, or of a part of it.

    Args:
        folder: config and tensors.
        gpu: the device, which the decoder closes, also if it cannot be built.
        context: positions of each KV cache; None chooses as `qwchat.model.context_limits.choose_context` does.
        kv: kind of the KV caches as on the CPU: `f32` (here f16), `q8` or `auto`.
        layers: the layers that run on the device, up to the last one, which brings the head; None for the whole model
            with its embedding.
        progress: called with the bytes of the weights that were uploaded so far, and with all of them.

    Raises:
        ModelError: the kernels cannot run the model's shapes or formats.
        GpuMemoryError: the device has too little free memory.
        GpuError: the device or its driver cannot be used.
    """
    config = folder.config
    positions, part = choose_context(config, context), DevicePart.whole(config)
    if layers is not None and len(layers) < config.num_layers:
        part = DevicePart.last(config, len(layers))
    return CudaDecoder(
        folder,
        gpu,
        context=positions,
        kind=choose_kv_kind(kv, config, positions),
        part=part,
        progress=progress,
    )
