"""Small quantised models, and decoders of them on the fake driver and on the CPU."""

from __future__ import annotations

import numpy as np

from quant.families import expected_tensors
from quant.formats import PackedTensor, dequantise
from quant.formats.dense import bf16_to_f32
from qwchat.cuda.decoder import CudaDecoder
from qwchat.cuda.device import OpenGpu, find_gpus
from qwchat.cuda.manifest import PTX_FOLDER
from qwchat.model.gpu_memory import DevicePart
from tests.cpu.kernels.random_tensors import Folder, random_packed, vector
from tests.cpu.random_models import config


def small_config(**changes):
    """Return a model with the head ratio of Qwen2-7B: 7 query heads of 64 dimensions for a KV head."""
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 320,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 301,
    }
    return config(**(sizes | changes))


def unit_rows(packed: PackedTensor) -> PackedTensor:
    """Return a matrix whose rows have about length 1, by scaling its scales."""
    lengths = np.maximum(np.linalg.norm(dequantise(packed).astype(np.float64), axis=1), 1e-9)
    parts = dict(packed.parts)
    if "row_scales" in parts:
        padded = np.ones(parts["row_scales"].size)
        padded[: len(lengths)] = lengths
        parts["row_scales"] = (parts["row_scales"] / padded.reshape(-1, 16)).astype(np.float32)
    elif "scales" in parts:
        parts["scales"] = (parts["scales"] / lengths.mean()).astype(np.float16)
    elif packed.format == "bf16":
        values = bf16_to_f32(parts["values"]) / np.float32(lengths.mean())
        parts["values"] = (values.view(np.uint32) >> 16).astype(np.uint16)
    return PackedTensor(packed.format, packed.shape, packed.group_size, parts)


def quantised_folder(model, kind=("q4", 32, False), head=("q8", 32, False), seed=0, **kinds):
    """Return a random model whose matrices have the format `kind`.

    Args:
        model: its config.
        kind: (format, group size, zero points) of the layers.
        head: of the embedding and the head.
        seed: of the weights.
        kinds: format of single modules, such as `v_proj`.
    """
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in expected_tensors(model).items():
        values = rng.standard_normal(shape).astype(np.float32)
        module = name.split(".")[-2]
        if len(shape) == 1:
            tensors[name] = vector(values if name.endswith("bias") else (1 + 0.1 * values).astype(np.float32))
        else:
            own = head if module in ("embed_tokens", "lm_head") else kinds.get(module, kind)
            tensors[name] = unit_rows(random_packed(own, *shape, rng))
    return Folder(model, **tensors)


def open_decoder(driver, folder, *, context=256, kind="f16", part=None, ptx=PTX_FOLDER, progress=None):
    """Return a decoder on a fake driver."""
    gpu = OpenGpu(driver, find_gpus(driver)[0])
    part = part or DevicePart.whole(folder.config)
    return CudaDecoder(folder, gpu, context=context, kind=kind, part=part, ptx=ptx, progress=progress)


def divergence(expected, actual):
    """Return the largest KL divergence of rows of logits, in nats."""
    wide = [each.astype(np.float64) for each in (expected, actual)]
    p, q = (each - np.logaddexp.reduce(each, axis=-1, keepdims=True) for each in wide)
    return float((np.exp(p) * (p - q)).sum(-1).max())
