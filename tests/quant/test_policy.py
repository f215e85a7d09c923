"""Arguments of a conversion become formats of tensors."""

from __future__ import annotations

import pytest

from quant.errors import ArgumentError, FormatError
from quant.families import expected_tensors, parse_config
from quant.policy import ConversionSpec, conversion_spec, is_sensitive, keep_home, plan_tensors
from quant.presets import PRESETS, Preset
from tests.quant.checkpoints import CONFIG


def formats_of(settings: ConversionSpec, **overrides: object) -> dict[str, str]:
    config = parse_config({**CONFIG, "num_hidden_layers": 4, **overrides})
    names = expected_tensors(config)
    plans = plan_tensors(config, settings, dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
    return {tensor.name: tensor.format for tensor in plans}


@pytest.mark.parametrize(
    ("preset", "bits", "group_size", "expected"),
    [
        (None, None, None, ConversionSpec("q4", 32)),
        ("q4", 4, 32, ConversionSpec("q4", 32)),
        (None, 8, None, ConversionSpec("q8", 32)),
        (None, 6, None, ConversionSpec("q6", 32)),
        ("q4", 4, 128, ConversionSpec("lin4", 128)),
        ("q4", None, 64, ConversionSpec("lin4", 64)),
        (None, 8, 64, ConversionSpec("lin8", 64)),
        ("q8", None, 128, ConversionSpec("lin8", 128)),
        ("q4-small", 4, None, ConversionSpec("q4-small", 32)),
        ("lin4", None, None, ConversionSpec("lin4", 32)),
        ("lin8", 8, 128, ConversionSpec("lin8", 128)),
        ("dense", None, None, ConversionSpec("dense", 0)),
    ],
)
def test_conversion_spec(
    preset: str | None, bits: int | None, group_size: int | None, expected: ConversionSpec
) -> None:
    assert conversion_spec(preset, bits, group_size) == expected


def test_a_quantised_source_keeps_its_formats_unless_something_else_is_requested() -> None:
    assert conversion_spec(quantised=True) == conversion_spec("imported", quantised=True)
    assert conversion_spec(quantised=True) == ConversionSpec("imported", 32)
    assert conversion_spec("q4", quantised=True) == ConversionSpec("q4", 32)
    assert conversion_spec(bits=8, quantised=True) == ConversionSpec("q8", 32)
    assert conversion_spec(group_size=64, quantised=True) == ConversionSpec("lin4", 64)
    with pytest.raises(ArgumentError, match="'imported' needs a quantised source"):
        conversion_spec("imported")
    with pytest.raises(ArgumentError, match="'imported' keeps the source's formats"):
        conversion_spec("imported", bits=4, quantised=True)


@pytest.mark.parametrize(
    ("preset", "bits", "group_size", "message"),
    [
        ("q5", None, None, "unknown preset 'q5'"),
        ("q4", 3, None, "3 bits are not supported"),
        ("q4", None, 48, "group size 48 is not supported"),
        ("q8", 4, None, "contradicts 4 bits"),
        ("q4", 8, None, "contradicts 8 bits"),
        ("lin4", 8, None, "contradicts 8 bits"),
        ("q4-small", 8, None, "contradicts 8 bits"),
        ("q4-small", None, 64, "'q4-small' supports groups of 32"),
        ("dense", 4, None, "does not quantise"),
        ("dense", None, 32, "does not quantise"),
    ],
)
def test_conversion_spec_refuses(preset: str, bits: int | None, group_size: int | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        conversion_spec(preset, bits, group_size)


def test_q4_uses_6_bits_for_embedding_head_and_sensitive_matrices() -> None:
    chosen = formats_of(ConversionSpec("q4", 32))
    assert chosen["model.embed_tokens.weight"] == chosen["lm_head.weight"] == "q6"
    for layer, expected in enumerate(["q6", "q4", "q4", "q4"]):
        prefix = f"model.layers.{layer}."
        assert chosen[prefix + "mlp.down_proj.weight"] == expected
        assert chosen[prefix + "self_attn.v_proj.weight"] == expected
        assert chosen[prefix + "mlp.up_proj.weight"] == "q4"
        assert chosen[prefix + "self_attn.k_proj.bias"] == "vector"
    assert formats_of(ConversionSpec("q4", 32), tie_word_embeddings=True)["model.embed_tokens.weight"] == "q6"


def test_other_presets() -> None:
    small = formats_of(ConversionSpec("q4-small", 32))
    assert small["model.layers.0.mlp.down_proj.weight"] == "q4"
    assert (small["lm_head.weight"], small["model.embed_tokens.weight"]) == ("q6", "q4")
    assert set(formats_of(ConversionSpec("q8", 32)).values()) == {"q8", "vector"}
    assert set(formats_of(ConversionSpec("dense", 0)).values()) == {"bf16", "vector"}
    assert set(formats_of(ConversionSpec("lin8", 64), intermediate_size=128).values()) == {"lin8", "vector"}
    linear = formats_of(ConversionSpec("lin4", 64), intermediate_size=128)
    assert linear["lm_head.weight"] == "lin8"
    assert linear["model.layers.0.mlp.down_proj.weight"] == "lin4"


def test_choices_override_the_preset() -> None:
    gate, embedding = "model.layers.1.mlp.gate_proj.weight", "model.embed_tokens.weight"
    choices = {gate: "q6", "lm_head.weight": "q4", embedding: "lin4"}
    chosen = formats_of(ConversionSpec("q4", 32, choices))
    plain = formats_of(ConversionSpec("q4", 32))
    assert chosen == plain | choices
    assert formats_of(ConversionSpec("dense", 0, {gate: "q6"}))[gate] == "q6"


def test_a_choice_uses_its_own_group_size_where_that_of_the_preset_does_not_fit() -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    config = parse_config({**CONFIG, "num_hidden_layers": 2, "intermediate_size": 128})
    names = expected_tensors(config)
    spec = ConversionSpec("lin4", 64, {name: "q6", "lm_head.weight": "lin8"})
    plans = plan_tensors(config, spec, dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
    assert {plan.name: plan.group_size for plan in plans if plan.name in spec.choices} == {
        name: 32,
        "lm_head.weight": 64,
    }


def test_choices_of_quantised_sources() -> None:
    config = parse_config({**CONFIG, "num_hidden_layers": 1})
    names = expected_tensors(config)
    gate, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    spec = ConversionSpec("imported", 32, {gate: "q6", up: "lin4"})
    plans = {
        plan.name: keep_home(plan, spec, "lin4", 32, zeros=True)
        for plan in plan_tensors(config, spec, dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
        if len(plan.shape) == 2
    }
    assert [plans[gate].kept, plans[up].kept, plans["model.layers.0.mlp.down_proj.weight"].kept] == [False, True, True]
    assert plans[gate].format == "q6"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"model.layers.9.mlp.gate_proj.weight": "q6"}, r"the model has no matrix 'model\.layers\.9\.mlp"),
        ({"model.norm.weight": "q6"}, r"the model has no matrix 'model\.norm\.weight'"),
        ({"lm_head.weight": "q5"}, r"tensor lm_head\.weight cannot become 'q5'; choose one of q4, q6, q8, lin4, lin8"),
        ({"lm_head.weight": "k8"}, "cannot become 'k8'"),
        ({"lm_head.weight": "bf16"}, "cannot become 'bf16'"),
    ],
)
def test_impossible_choices_are_refused(choices: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        formats_of(ConversionSpec("q4", 32, choices))


def test_the_embedding_of_an_untied_model_is_a_kind_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "mixed", Preset("", "q4", head="q8", embedding="q6"))
    chosen = formats_of(ConversionSpec("mixed", 32))
    assert (chosen["model.embed_tokens.weight"], chosen["lm_head.weight"]) == ("q6", "q8")
    assert formats_of(ConversionSpec("mixed", 32), tie_word_embeddings=True)["model.embed_tokens.weight"] == "q8"


def test_eighths_of_28_layers() -> None:
    config = parse_config({**CONFIG, "num_hidden_layers": 28})
    sensitive = [layer for layer in range(28) if is_sensitive(f"model.layers.{layer}.mlp.down_proj.weight", config)]
    assert sensitive == [0, 1, 2]


def test_shapes_that_do_not_fit_name_the_tensor() -> None:
    with pytest.raises(FormatError, match=r"tensor model\.layers\.0\.mlp\.down_proj\.weight cannot be stored: .* 64"):
        formats_of(ConversionSpec("lin4", 64))


def test_seven_billion_parameters_take_less_than_q4_k_m() -> None:
    """Compare the whole model, including the head; Q4_K_M of llama.cpp has 4.913 bits per weight on the same shapes."""
    shapes = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    config = parse_config({**CONFIG, **shapes, "num_hidden_layers": 28, "vocab_size": 152064})
    names = expected_tensors(config)

    def bits_per_weight(preset: str) -> float:
        plans = plan_tensors(config, conversion_spec(preset), dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
        return 8 * sum(tensor.packed_bytes for tensor in plans) / sum(tensor.parameters for tensor in plans)

    assert bits_per_weight("q4") < 4.64
    assert bits_per_weight("q4-small") < 4.42
    assert bits_per_weight("q8") < 8.27
