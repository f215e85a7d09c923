"""Qwen3, dense: the shared decoder without biases, with an RMSNorm on each head of q and k before RoPE."""

from __future__ import annotations

from functools import partial

from quant.families import qwen_decoder as decoder
from quant.families.family import Family
from quant.json_fields import JsonFields


def _check_supported(fields: JsonFields) -> None:
    decoder.check_supported(fields)
    if fields.boolean("attention_bias", False):
        raise fields.invalid("attention_bias is true; attention biases are not supported for Qwen3")


QWEN3 = Family(
    model_type="qwen3",
    title="Qwen3",
    # head_dim is not always hidden_size / num_heads, so config.json must give it.
    config_keys=decoder.CONFIG_KEYS | {"head_dim": "head_dim"},
    check_supported=_check_supported,
    tensor_shapes=partial(decoder.tensor_shapes, biases=False, head_norms=True),
    describe_sizes=decoder.describe_sizes,
    sensitive_suffixes=decoder.SENSITIVE_SUFFIXES,
    input_kinds=decoder.INPUT_KINDS,
    derived_suffixes=decoder.DERIVED_SUFFIXES,
    layer_prefix=decoder.LAYER_PREFIX,
    embedding_name=decoder.EMBEDDING_NAME,
    head_name=decoder.HEAD_NAME,
)
