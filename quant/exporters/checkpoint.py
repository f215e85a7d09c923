"""Export a dequantised checkpoint: safetensors files, config.json and the tokenizer, as Hugging Face publishes them."""

from __future__ import annotations

import json
import math
from typing import Any

from quant.container import ModelFolder
from quant.errors import ArgumentError
from quant.exporters.export_plan import ExportPlan, ExportSpec, FileEntry, TensorExport
from quant.exporters.floats import ITEM_BYTES, float_encoder
from quant.exporters.model_files import small_files
from quant.exporters.safetensors_files import json_file, weight_files
from quant.families import expected_tensors

_DEFAULT_DTYPE = "bf16"
_TORCH_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def plan_checkpoint(model: ModelFolder, spec: ExportSpec) -> ExportPlan:
    """Plan the export of a model as a checkpoint.

    Raises:
        ArgumentError: `bits` is given.
        ContainerError: a small file of the model is missing or damaged.
    """
    if spec.bits is not None:
        raise ArgumentError(f"a checkpoint in safetensors is not quantised; leave {spec.bits} bits out")
    dtype = spec.dtype or _DEFAULT_DTYPE
    tensors = [float_tensor(model, name, dtype) for name in expected_tensors(model.config)]
    weights, index = weight_files(tensors, spec)
    files = small_files(model)
    config = config_values(files, dtype)
    return ExportPlan(weights, {**files, "config.json": json_file(config), **index})


def float_tensor(model: ModelFolder, name: str, dtype: str) -> TensorExport:
    """Return the plan of a tensor that is stored unquantised."""
    packed = model.tensor(name)
    entry = FileEntry(name, dtype, packed.shape, ITEM_BYTES[dtype] * math.prod(packed.shape))
    return TensorExport(name, packed.shape, packed.format, dtype, (entry,), float_encoder(dtype, name))


def config_values(files: dict[str, bytes], dtype: str) -> dict[str, Any]:
    """Return the values of config.json for a model whose unquantised tensors have type `dtype`."""
    config: dict[str, Any] = json.loads(files["config.json"])
    config.pop("quantization_config", None)
    key = "dtype" if config.pop("torch_dtype", None) is None and "dtype" in config else "torch_dtype"
    config.pop("dtype", None)
    return {**config, key: _TORCH_DTYPES[dtype]}
