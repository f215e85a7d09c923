"""Build a decoder on a GPU from the user's options."""

from __future__ import annotations

from qwchat.cuda.device import OpenGpu
from qwchat.errors import GpuError
from qwchat.model.decoder import Decoder


def build_decoder(folder: object, gpu: OpenGpu, **options: object) -> Decoder:
    """Raise GpuError: the decoder is not there yet."""
    raise GpuError(f"{gpu.gpu.name} cannot be used yet")
