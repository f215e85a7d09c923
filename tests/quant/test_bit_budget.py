"""A budget of bits per weight: never exceeded, used up to one matrix, from measured or estimated losses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quant import convert
from quant.bit_budget import BUDGET_FORMATS, BitBudget, budget_options, budget_spec
from quant.container import open_model
from quant.conversion import ConversionPlanned
from quant.errors import ArgumentError
from quant.families import expected_tensors, parameter_count, parse_config
from quant.policy import plan_tensors
from quant.sensitivities import read_sensitivities
from quant.sources import open_source
from quant.writer import weights_size
from tests.quant.checkpoints import CONFIG, make_checkpoint, write_json
from tests.quant.converting import run

SHAPES = {name: shape for name, shape in expected_tensors(parse_config(CONFIG)).items() if len(shape) == 2}
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def planned(source: Path, bits: float, path: Path | None = None) -> ConversionPlanned:
    sensitivities = None if path is None else read_sensitivities(path)
    events = convert(source, source.parent / "model", budget=BitBudget(bits, sensitivities), dry_run=True)
    event = next(events)
    assert isinstance(event, ConversionPlanned)
    return event


def measured(**changed: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return losses of all matrices, which are equal per weight except for those `changed`."""
    found = {name: {"q4": 1e-3, "q6": 1e-4, "q8": 1e-5} for name in SHAPES}
    return found | changed


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [5.6, 6.0, 6.4, 7.0, 7.7])
def test_the_whole_model_is_within_the_budget_and_one_matrix_of_it(tmp_path: Path, tied: bool, bits: float) -> None:
    source = make_checkpoint(tmp_path / "source", config_overrides={"tie_word_embeddings": tied})
    plan = planned(source, bits)
    assert plan.bits_per_weight <= bits
    with open_source(source) as opened:
        config = opened.config
        assert budget_spec(opened, BitBudget(bits)).choices == {
            tensor.name: tensor.format for tensor in plan.tensors if len(tensor.shape) == 2
        }
    steps = [options[-1].nbytes - options[0].nbytes for options in budget_options(config, None).values()]
    assert (bits - plan.bits_per_weight) * parameter_count(config) / 8 < max(steps)
    assert {tensor.format for tensor in plan.tensors} <= {"vector", *BUDGET_FORMATS}


def test_the_options_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    with open_source(make_checkpoint(tmp_path / "source")) as opened:
        config, infos = opened.config, opened.tensors
        for kind in BUDGET_FORMATS:
            spec = budget_spec(opened, BitBudget(6))
            spec = type(spec)(spec.preset, spec.group_size, dict.fromkeys(SHAPES, kind))
            dtypes = {name: info.dtype for name, info in infos.items()}
            plans = plan_tensors(config, spec, dtypes, {name: info.nbytes for name, info in infos.items()})
            keys = [(plan.name, plan.format, plan.shape, plan.group_size, plan.zeros) for plan in plans]
            vectors = [key for key in keys if key[1] == "vector"]
            matrices = sum(
                option.nbytes
                for options in budget_options(config, None).values()
                for option in options
                if option.format == kind
            )
            assert weights_size(keys) == matrices + weights_size(vectors)


def test_the_converted_model_has_the_planned_formats(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    run(source, tmp_path / "model", budget=BitBudget(6.0))
    model = open_model(tmp_path / "model")
    assert model.bits_per_weight <= 6.0
    plan = planned(source, 6.0)
    assert {name: model.tensor(name).format for name in model.names} == {
        tensor.name: tensor.format for tensor in plan.tensors
    }
    assert len({tensor.format for tensor in plan.tensors}) > 2


def test_measured_losses_decide(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    write_json(tmp_path / "measured.json", {"tensors": measured(**{UP: {"q4": 1.0, "q6": 0.5, "q8": 0.0}})})
    formats = {tensor.name: tensor.format for tensor in planned(source, 5.2, tmp_path / "measured.json").tensors}
    assert formats[UP] == "q8"
    write_json(tmp_path / "other.json", {"tensors": measured(**{EMBEDDING: {"q4": 9.0, "q6": 0.0, "q8": 0.0}})})
    formats = {tensor.name: tensor.format for tensor in planned(source, 5.3, tmp_path / "other.json").tensors}
    assert formats[EMBEDDING] == "q6"


@pytest.mark.parametrize(("bits", "size"), [(1.0, "small"), (30.0, "large"), (4.0, "small"), (1e9, "large")])
def test_an_impossible_budget_names_the_possible_ones(tmp_path: Path, bits: float, size: str) -> None:
    source = make_checkpoint(tmp_path / "source")
    with pytest.raises(
        ArgumentError, match="^" + re.escape(f"a budget of {bits:g} bits per weight is too {size}")
    ) as caught:
        planned(source, bits)
    least, most = (float(word) for word in str(caught.value).partition("; give ")[2].split(" to "))
    assert planned(source, least).bits_per_weight <= least
    assert planned(source, most).bits_per_weight <= most
    for outside in (least - 0.002, most + 0.002):
        with pytest.raises(ArgumentError):
            planned(source, outside)


@pytest.mark.parametrize("argument", [{"preset": "q4"}, {"bits": 4}, {"group_size": 32}])
def test_a_budget_contradicts_other_choices(tmp_path: Path, argument: dict[str, Any]) -> None:
    source = make_checkpoint(tmp_path / "source")
    with pytest.raises(ArgumentError, match="a budget chooses the format of each matrix; leave out"):
        next(convert(source, tmp_path / "model", budget=BitBudget(5), **argument))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format="zip"), "the format is not qwchat-sensitivities; measure again"),
        (lambda content: content.pop("tensors"), r"the key 'tensors' \(object\) is missing"),
        (lambda content: content.update(tensors=[]), r"tensors is \[\], expected an object"),
        (lambda content: content["tensors"].pop(UP), f"lacks {UP} as q4; measure again"),
        (lambda content: content["tensors"][UP].pop("q6"), f"lacks {UP} as q6; measure again"),
        (lambda content: content["tensors"].update({UP: 1}), "is 1, expected an object"),
        (lambda content: content["tensors"][UP].update(q4=-1), "q4 is -1, expected a number from 0"),
        (lambda content: content["tensors"][UP].update(q4=float("nan")), "q4 is nan, expected a number"),
        (lambda content: content["tensors"][UP].update(q4=True), "q4 is True, expected a number"),
        (lambda content: content["tensors"][UP].update(dict.fromkeys(map(str, range(40)), 0)), "more than 32 formats"),
        (lambda content: content["tensors"].update({"x\ny": {}}), r"has 'x\\ny', which is not a matrix of this model"),
        (lambda content: content.update(source={"fingerprint": "0"}), "was measured on another checkpoint"),
        (lambda content: content.update(source={"fingerprint": 5}), "fingerprint is 5, expected a string"),
    ],
)
def test_hostile_sensitivities(tmp_path: Path, change: Any, message: str) -> None:
    content: dict[str, Any] = {"tensors": measured()}
    change(content)
    write_json(tmp_path / "measured.json", content)
    with pytest.raises(ArgumentError, match=message) as caught:
        planned(make_checkpoint(tmp_path / "source"), 5.5, tmp_path / "measured.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_files_that_are_not_sensitivities(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "measured.json").write_bytes(data)
    with pytest.raises(ArgumentError) as caught:
        read_sensitivities(tmp_path / "measured.json")
    assert "\n" not in str(caught.value)


def test_sensitivities_of_this_checkpoint_are_accepted(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    with open_source(source) as opened:
        content = {"source": {"fingerprint": opened.fingerprint}, "tensors": measured()}
    (tmp_path / "measured.json").write_text(json.dumps(content))
    assert planned(source, 5.5, tmp_path / "measured.json").bits_per_weight <= 5.5
