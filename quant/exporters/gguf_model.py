"""Export a model as GGUF, which llama.cpp and programs based on it load."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from quant.container import ModelFolder
from quant.errors import ContainerError
from quant.exporters.export_plan import ExportPlan, ExportSpec, TensorExport
from quant.exporters.gguf_files import ALIGNMENT, gguf_files
from quant.exporters.gguf_tokenizer import tokenizer_metadata
from quant.exporters.gguf_types import gguf_tensor
from quant.exporters.model_files import small_files
from quant.families import expected_tensors, family_of
from quant.model_config import ModelConfig
from quant.sources.gguf.names import gguf_name

_QUANTISATION_VERSION = 2
_HEAD_BITS = 8
_FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q4_k": 15,
    "q5_k": 17,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "bf16": 32,
}
"""Number of general.file_type by the type of most weights."""


def plan_gguf(model: ModelFolder, spec: ExportSpec) -> ExportPlan:
    """Plan the export of a model as GGUF files.

    Raises:
        ContainerError: a small file of the model is missing or damaged, or GGUF cannot hold the tokenizer.
    """
    tensors = [_tensor(model, name, spec) for name in expected_tensors(model.config)]
    files = small_files(model)
    metadata = {
        **model_metadata(model, _file_type(tensors)),
        **tokenizer_metadata(files, model.config, str(model.path)),
    }
    return ExportPlan(gguf_files(model.path.resolve().name, tensors, metadata, spec), {})


def _tensor(model: ModelFolder, name: str, spec: ExportSpec) -> TensorExport:
    found = gguf_name(name)
    if found is None:
        raise ContainerError(f"{model.path}: GGUF has no name for tensor {name}; export the model as safetensors")
    in_layer = family_of(model.config).layer_of(name) is not None
    bits = spec.bits if in_layer or spec.bits is None else _HEAD_BITS
    return gguf_tensor(name, found, model.tensor(name), bits, spec.dtype)


def model_metadata(model: ModelFolder, file_type: int) -> dict[str, object]:
    """Return the metadata of a model without its tokenizer."""
    config = model.config
    source = model.manifest["source"]
    licence = {"general.license": source["licence"]} if isinstance(source.get("licence"), str) else {}
    sizes: dict[str, object] = {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        **_scaling(config),
    }
    return {
        "general.architecture": config.model_type,
        "general.type": "model",
        "general.name": source["name"],
        **licence,
        "general.alignment": ALIGNMENT,
        "general.quantization_version": _QUANTISATION_VERSION,
        "general.file_type": file_type,
        **{f"{config.model_type}.{key}": value for key, value in sizes.items()},
    }


def _scaling(config: ModelConfig) -> dict[str, object]:
    """Return the keys of YaRN. llama.cpp multiplies attn_factor by 0.1 ln(factor) + 1."""
    yarn = config.rope_scaling
    if yarn is None:
        return {}
    default = 0.1 * math.log(yarn.factor) + 1 if yarn.factor > 1 else 1.0
    values: dict[str, object] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": yarn.beta_fast,
        "rope.scaling.yarn_beta_slow": yarn.beta_slow,
    }
    if not math.isclose(yarn.attention_factor, default, rel_tol=1e-6):
        values["rope.scaling.attn_factor"] = yarn.attention_factor / default
    return values


def _file_type(tensors: Sequence[TensorExport]) -> int:
    """Return the number of the type that most weights of matrices have."""
    weights: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            weights[tensor.entries[0].dtype] += math.prod(tensor.shape)
    return _FILE_TYPES[weights.most_common(1)[0][0]]
