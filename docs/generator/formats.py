"""The page of presets, formats and sizes, from their records and the converter's own plan."""

from __future__ import annotations

import math
from typing import Any

from docs.generator.markdown import code, escaped, table
from docs.generator.markdown import page as whole_page
from quant.families import expected_tensors, parse_config
from quant.formats import FORMATS, Format
from quant.model_config import ModelConfig
from quant.policy import conversion_spec, plan_tensors
from quant.presets import DEFAULT_PRESET, IMPORTED_PRESET, PRESETS
from qwchat.cpu.kv_cache import choose_kv_kind
from qwchat.limits import DEFAULT_CONTEXT

_INTRODUCTION = """\
`qwchat convert` writes each tensor in one of the formats below; a preset chooses the format of each kind of matrix.
[Models and conversion](../guide/models.md) says which preset to take."""

_SIZES = """\
Computed for the published shapes of each model: the weights as `qwchat convert --dry-run` counts them, in GB (10⁹
bytes)."""

_CACHE = f"""\
The KV cache grows with the context window. With `--kv auto` it is `f32` up to 128 MiB and `q8` above. In MiB, for
{DEFAULT_CONTEXT:,} tokens (the default) and for 32,768:"""

# hidden_size, intermediate_size, layers, heads, KV heads, vocabulary, tied embedding
_Shape = tuple[int, int, int, int, int, int, bool]
SHAPES: dict[str, _Shape] = {
    "Qwen2 0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "Qwen2 1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "Qwen2.5 3B": (2048, 11008, 36, 16, 2, 151936, True),
    "Qwen2 7B": (3584, 18944, 28, 28, 4, 152064, False),
    "Qwen2.5 14B": (5120, 13824, 48, 40, 8, 152064, False),
    "Qwen2.5 32B": (5120, 27648, 64, 40, 8, 152064, False),
}


def config_of(shape: _Shape) -> ModelConfig:
    """Return the configuration of a published model."""
    hidden, inner, layers, heads, kv_heads, vocabulary, tied = shape
    values: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    }
    return parse_config(values)


def weights(config: ModelConfig, preset: str) -> tuple[int, float]:
    """Return the bytes of a model's weights in a preset, and its bits per weight."""
    names = expected_tensors(config)
    tensors = plan_tensors(config, conversion_spec(preset), dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
    size = sum(tensor.packed_bytes for tensor in tensors)
    return size, 8 * size / sum(tensor.parameters for tensor in tensors)


def cache_bytes(config: ModelConfig, context: int) -> tuple[int, str]:
    """Return the bytes of the KV cache that `--kv auto` makes for a context, and its kind."""
    kind = choose_kv_kind("auto", config, context)
    elements = 2 * config.num_layers * config.num_kv_heads * config.head_dim * context
    return elements * 4 if kind == "f32" else elements + elements // 32 * 2, kind


def _preset_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, preset in PRESETS.items():
        kept = preset.matrices or "as in the checkpoint"
        default = " (default)" if name == DEFAULT_PRESET else ""
        rows.append(
            (
                code(name) + default,
                kept,
                preset.sensitive or kept,
                preset.embedding or kept,
                preset.head or kept,
                escaped(preset.summary),
            )
        )
    return rows


def _bits(form: Format) -> str:
    """Return the bits of a weight with its share of scales and zero points, for the default group size."""
    rows, columns = 4096, 4096
    group = form.group_sizes[0] if form.group_sizes else 0
    parts = form.layout((rows, columns), group, form.stores_zeros)
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in parts.values())
    return f"{8 * size / rows / columns:.2f}"


def _format_rows() -> list[tuple[str, ...]]:
    return [
        (
            code(name),
            str(form.bits),
            ", ".join(map(str, form.group_sizes)) or "none",
            "yes" if form.stores_zeros else "no",
            _bits(form),
            "yes" if form.quantiser else "no",
        )
        for name, form in FORMATS.items()
        if name != "vector"
    ]


def _size_rows() -> list[tuple[str, ...]]:
    configs = {name: config_of(shape) for name, shape in SHAPES.items()}
    return [
        (name, *(f"{weights(config, preset)[0] / 1e9:.1f}" for preset in PRESETS)) for name, config in configs.items()
    ]


def _bits_rows() -> list[tuple[str, ...]]:
    configs = {name: config_of(shape) for name, shape in SHAPES.items()}
    return [(name, *(f"{weights(config, preset)[1]:.2f}" for preset in PRESETS)) for name, config in configs.items()]


def _cache_rows() -> list[tuple[str, ...]]:
    rows = []
    for name, shape in SHAPES.items():
        config = config_of(shape)
        sizes = [cache_bytes(config, context) for context in (DEFAULT_CONTEXT, 32768)]
        rows.append((name, *(f"{size / 2**20:,.0f} ({kind})" for size, kind in sizes)))
    return rows


def page() -> str:
    """Return the page."""
    return whole_page(
        "Formats and sizes",
        _INTRODUCTION,
        "## Presets",
        table(["Preset", "Matrices", "Sensitive matrices", "Embedding", "Head", "Content"], _preset_rows()),
        "Sensitive matrices are those of attention and `down_proj` in the first eighth of the layers. Biases and norms "
        "stay f32. A tied embedding has the format of the head.",
        f"The default of a source that is quantised already is `{IMPORTED_PRESET}`: a matrix whose quantised values "
        "fit one of the formats below keeps them unchanged, every other matrix becomes `q8`. Each of the presets above "
        "quantises the values of such a source again.",
        "## Formats",
        table(
            ["Format", "Bits of a code", "Group sizes", "Zero points", "Bits per weight", "From float weights"],
            _format_rows(),
        ),
        "Bits per weight include scales, minimums and zero points, at the first group size. `vector` is the f32 format "
        "of biases and norms. Formats that float weights are not converted to keep tensors of GGUF files unchanged: "
        "`min4` Q4_1, `k4` Q4_K, `k8` Q5_K, `iq4` IQ4_NL and `iq4k` IQ4_XS. They run on the CPU only. The byte layout "
        "of each format is in the docstrings of `quant.formats`.",
        "## Size of a model",
        _SIZES,
        table(["GB", *map(code, PRESETS)], _size_rows()),
        "Bits per weight of the whole model:",
        table(["Bits per weight", *map(code, PRESETS)], _bits_rows()),
        "## Size of the KV cache",
        _CACHE,
        table(["Model", f"{DEFAULT_CONTEXT:,} tokens", "32,768 tokens"], _cache_rows()),
    )
