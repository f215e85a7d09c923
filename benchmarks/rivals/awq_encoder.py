"""AWQ in NumPy: input channels are scaled before rounding to 4 bits with zero points, and group ranges are clipped.

Sources: Lin et al. 2023; the search is AutoAWQ's: 20 exponents, s = mean|x|^r / mean|w|^(1 - r) with |w| relative to
the largest of its group, least squared error of the block's output; then 10 steps of clipping by the matrix's output,
except for queries and keys. Scales are folded into norms and into the rows of up_proj. The scale between v_proj and
o_proj is left out: with grouped queries the two do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.float_pass import FloatPass, Floats, Tensors
from benchmarks.rivals.gptq_encoder import GROUP_SIZE, LARGEST, Codes
from quant.model_config import ModelConfig

EXPONENTS = 20
CLIP_STEPS, MOST_SHRUNK = 20, 0.5
SEARCH_WINDOWS = 4
"""Windows that block outputs are compared on; all windows count for the means of |x|."""
CLIP_TOKENS = 512


def grouped(values: NDArray, group_size: int = GROUP_SIZE) -> Iterator[slice]:
    """Yield the columns of each group of a matrix (N, K); the last one may have fewer."""
    for start in range(0, values.shape[1], group_size):
        yield slice(start, min(start + group_size, values.shape[1]))


def encode(values: Floats, group_size: int = GROUP_SIZE) -> Codes:
    """Round a matrix (N, K) to 4 bits with an integer zero point for each group."""
    codes, scales, zeros = np.empty(values.shape, np.uint8), [], []
    for columns in grouped(values, group_size):
        part = values[:, columns]
        low, high = part.min(1, keepdims=True), part.max(1, keepdims=True)
        step = (np.maximum(high - low, 1e-5) / LARGEST).astype(np.float16).astype(np.float32)
        zero = np.clip(-np.rint(low / step), 0, LARGEST)
        codes[:, columns] = np.clip(np.rint(part / step) + zero, 0, LARGEST)
        scales.append(step[:, 0].astype(np.float16))
        zeros.append(zero[:, 0].astype(np.uint8))
    return Codes(codes, np.stack(scales, 1), np.stack(zeros, 1), group_size)


def relative_size(matrices: Sequence[Floats]) -> Floats:
    """Return the mean over all rows of |w| relative to the largest of its group, for each column, (K,)."""
    weights = np.abs(np.concatenate(matrices))
    for columns in grouped(weights):
        weights[:, columns] /= weights[:, columns].max(1, keepdims=True) + np.float32(1e-6)
    found: Floats = weights.mean(0)
    return found


def channel_scales(activity: Floats, size: Floats, exponent: float) -> Floats:
    """Return the scale of each input channel (K,), centred so that the largest times the smallest is 1.

    Args:
        activity: mean |x| of each channel.
        size: `relative_size` of the matrices that read them.
        exponent: 0 to 1, the weight of `activity`.
    """
    scales = np.maximum(activity**exponent / (size ** (1 - exponent) + 1e-4), 1e-4)
    scales = scales / np.sqrt(scales.max() * scales.min())
    scales[~np.isfinite(scales)] = 1
    return scales.astype(np.float32)


def search_scales(
    tensors: Tensors, names: Sequence[str], activity: Floats, output: Callable[[], Floats]
) -> tuple[Floats, float]:
    """Return the best scales (K,) for matrices that share an input, and their squared error.

    Args:
        tensors: all values; those of `names` are the original ones afterwards.
        names: the matrices.
        activity: mean |x| of their input.
        output: evaluates the block that contains them on the calibration text.
    """
    original = {name: tensors[name] for name in names}
    size = relative_size([original[name] for name in names])
    expected = output()
    best, least = np.ones(len(activity), np.float32), np.inf
    for step in range(EXPONENTS):
        scales = channel_scales(activity, size, step / EXPONENTS)
        for name in names:
            tensors[name] = encode(original[name] * scales).values() / scales
        loss = float(np.square(output() - expected, dtype=np.float64).mean())
        if loss < least:
            best, least = scales, loss
    tensors.update(original)
    return best, least


def clip(values: Floats, x: Floats) -> Floats:
    """Return a matrix whose groups are clipped where that brings their output nearer to the original.

    Args:
        values: the matrix, (N, K).
        x: its input, (tokens, K).
    """
    x = x[:: max(1, len(x) // CLIP_TOKENS)]
    clipped = values.copy()
    for columns in grouped(values):
        part, seen = values[:, columns], x[:, columns]
        expected, largest = part @ seen.T, np.abs(part).max(1, keepdims=True)
        best, least = largest, np.full(len(part), np.inf)
        for step in range(int(MOST_SHRUNK * CLIP_STEPS)):
            bound = largest * np.float32(1 - step / CLIP_STEPS)
            output = encode(np.clip(part, -bound, bound)).values() @ seen.T
            loss = np.square(output - expected).mean(1)
            better = loss < least
            least, best = np.where(better, loss, least), np.where(better[:, None], bound, best)
        clipped[:, columns] = np.clip(part, -best, best)
    return clipped


def fold(tensors: Tensors, prefix: str, scales: dict[str, Floats]) -> None:
    """Scale the input channels of a layer's matrices, and divide what produces them.

    Args:
        tensors: values, which are replaced.
        prefix: name of the layer.
        scales: of the inputs of attention, MLP and down_proj, by the names of what produces them.
    """
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.up_proj": ("mlp.down_proj",),
    }
    for producer, each in scales.items():
        name = f"{prefix}.{producer}.weight"
        tensors[name] = tensors[name] / (each[:, None] if tensors[name].ndim == 2 else each)
        for module in readers[producer]:
            tensors[f"{prefix}.{module}.weight"] = tensors[f"{prefix}.{module}.weight"] * each


def layer_scales(
    config: ModelConfig, tensors: Tensors, layer: int, inputs: dict[str, Floats], windows: Sequence[Sequence[int]]
) -> dict[str, Floats]:
    """Return the scales to `fold` into a layer.

    Args:
        config: the model's.
        tensors: all values.
        layer: its number.
        inputs: input of each of its products, (tokens, in), by the name of the module.
        windows: token ids of the calibration text; block outputs are compared on the first ones.
    """
    prefix = f"model.layers.{layer}"
    few = FloatPass(config, tensors, windows[:SEARCH_WINDOWS])
    count = len(few.ids)

    def best(modules: Sequence[str], output: Callable[[Floats], Floats]) -> Floats:
        x = inputs[modules[0]]
        names = [f"{prefix}.{module}.weight" for module in modules]
        return search_scales(tensors, names, np.abs(x).mean(0), lambda: output(x[:count]))[0]

    attention = [f"self_attn.{name}_proj" for name in "qkv"]
    return {
        "input_layernorm": best(attention, lambda x: few.attention(x, f"{prefix}.self_attn")),
        "post_attention_layernorm": best(["mlp.gate_proj", "mlp.up_proj"], lambda x: few.swiglu(x, f"{prefix}.mlp")),
        "mlp.up_proj": best(["mlp.down_proj"], lambda x: few.product(x, f"{prefix}.mlp.down_proj")),
    }


def encode_model(
    config: ModelConfig, tensors: Tensors, windows: Sequence[Sequence[int]]
) -> Iterator[tuple[str, Codes]]:
    """Yield the name and the codes of every matrix but embedding and head.

    Args:
        config: the model's.
        tensors: values of the checkpoint; afterwards norms are divided by the scales, and matrices are scaled and
            clipped.
        windows: token ids of the calibration text.
    """
    each = FloatPass(config, tensors, windows)
    x = each.embed(each.ids)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        inputs: dict[str, Floats] = {}

        def keep(seen: Floats, name: str, inputs: dict[str, Floats] = inputs, prefix: str = prefix) -> None:
            inputs[name.removeprefix(f"{prefix}.").removesuffix(".weight")] = seen

        x = each.watched_layer(x, layer, keep)
        scales = layer_scales(config, tensors, layer, inputs, windows)
        fold(tensors, prefix, scales)
        divisors = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}
        for module, seen in inputs.items():
            producer = "mlp.up_proj" if module == "mlp.down_proj" else divisors[module.split(".")[0]]
            name = f"{prefix}.{module}.weight"
            if module == "self_attn.o_proj":
                tensors[name] = clip(tensors[name], seen)
            elif not module.endswith(("q_proj", "k_proj")):
                tensors[name] = clip(tensors[name], seen / scales[producer])
            yield name, encode(tensors[name])
