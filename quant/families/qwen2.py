"""Qwen1.5, Qwen2 and Qwen2.5, QwQ and the R1 distillates: the shared decoder with biases on q, k and v."""

from __future__ import annotations

from functools import partial

from quant.families import qwen_decoder as decoder
from quant.families.family import Family

QWEN2 = Family(
    model_type="qwen2",
    title="Qwen2",
    config_keys=decoder.CONFIG_KEYS,
    check_supported=decoder.check_supported,
    tensor_shapes=partial(decoder.tensor_shapes, biases=True, head_norms=False),
    describe_sizes=decoder.describe_sizes,
    sensitive_suffixes=decoder.SENSITIVE_SUFFIXES,
    input_kinds=decoder.INPUT_KINDS,
    derived_suffixes=decoder.DERIVED_SUFFIXES,
    layer_prefix=decoder.LAYER_PREFIX,
    embedding_name=decoder.EMBEDDING_NAME,
    head_name=decoder.HEAD_NAME,
)
