import numpy as np
import pytest

from quant.calibration import Calibration, input_of
from quant.families import expected_tensors
from quant.formats import dequantise
from quant.quantisers import quantise
from quant.sources import open_source
from qwchat.calibration.sequential import SequentialCalibration, matrices_behind
from qwchat.calibration.source_tensors import SourceTensors
from tests.calibration.reference_moments import distance, reference_inputs
from tests.calibration.test_collect import pieces_of
from tests.quant.checkpoints import make_checkpoint
from tests.tiers import count

MODELS = {
    "qwen2": {"head_dim": 32},
    "qwen2 tied": {"head_dim": 32, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
}
PIECES = pieces_of([2, 1, 131])


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny", config_overrides=MODELS[request.param])


def changed(values, name):
    """Return the values of a tensor as a coarse quantiser might leave them, in f32."""
    if values.ndim == 1:
        return quantise("vector", values, 0)[0]
    noise = np.random.default_rng(len(name)).uniform(0.9, 1.1, values.shape)
    return quantise("f32", (values * noise).astype(np.float32), 0)[0]


@pytest.mark.slow
def test_moments_are_those_of_the_streams_at_each_moment(checkpoint):
    with open_source(checkpoint) as source:
        calibration: Calibration = SequentialCalibration(SourceTensors(source, 1), PIECES, 2)
        assert calibration.ordered
        config = source.config
        unquantised = reference_inputs(checkpoint, PIECES)
        replaced = {}
        for name in expected_tensors(config):
            key, found = input_of(name, config), calibration.moments(name)
            if key is None:
                assert found is None
            else:
                y = unquantised[key]
                tied = name == "model.embed_tokens.weight"
                x = y if tied else reference_inputs(checkpoint, PIECES, replaced)[key]
                assert found.samples == len(x)
                assert distance(found.blocks[0], x.T @ x / len(x)) < 1e-4, name
                if tied:
                    assert found.cross is None
                else:
                    scale = np.sqrt(np.outer((y * y).mean(0), (x * x).mean(0)))
                    assert np.abs((found.cross[0] - y.T @ x / len(x)) / scale).max() < 1e-4, name
            packed = changed(source.read(name), name)
            replaced[name] = dequantise(packed) if len(packed.shape) == 2 else packed.parts["values"]
            calibration.finished(name, packed)


def moments_of_all(calibration, source, packed, resumed_at=0):
    """Go through all tensors; return the moments of those from `resumed_at` on."""
    found = {}
    for number, name in enumerate(expected_tensors(source.config)):
        if number >= resumed_at:
            found[name] = calibration.moments(name)
        calibration.finished(name, packed[name])
    return found


@pytest.mark.parametrize("resumed_at", [1, 3, 11, 14, 20][: count(5, 2)])
def test_a_resumed_conversion_gets_the_same_moments(checkpoint, resumed_at):
    with open_source(checkpoint) as source:
        packed = {
            name: quantise("q8" if len(shape) == 2 else "vector", source.read(name), 32 if len(shape) == 2 else 0)[0]
            for name, shape in expected_tensors(source.config).items()
        }
        tensors = SourceTensors(source, 1)
        whole = moments_of_all(SequentialCalibration(tensors, PIECES, 2), source, packed)
        again = moments_of_all(SequentialCalibration(tensors, PIECES, 1), source, packed, resumed_at)
    for name, moments in again.items():
        if moments is None:
            assert whole[name] is None
            continue
        for part in ("blocks", "cross"):
            for one, other in zip(getattr(moments, part) or [], getattr(whole[name], part) or [], strict=True):
                np.testing.assert_array_equal(one, other)


def test_matrices_with_the_same_input_share_its_moments(checkpoint):
    with open_source(checkpoint) as source:
        calibration = SequentialCalibration(SourceTensors(source, 1), PIECES, 2)
        calibration.finished("model.embed_tokens.weight", changed(source.read("model.embed_tokens.weight"), ""))
        first = calibration.moments("model.layers.0.self_attn.q_proj.weight")
        assert calibration.moments("model.layers.0.self_attn.v_proj.weight") is first


def test_tensors_out_of_order_are_an_error(checkpoint):
    with open_source(checkpoint) as source:
        calibration = SequentialCalibration(SourceTensors(source, 1), PIECES, 2)
        with pytest.raises(ValueError, match=r"the embedding is not finished: ask for moments in module order"):
            calibration.moments("model.layers.0.self_attn.q_proj.weight")
        calibration.finished("model.embed_tokens.weight", changed(source.read("model.embed_tokens.weight"), ""))
        with pytest.raises(ValueError, match=r"q_proj.weight is not finished: ask for moments in module order"):
            calibration.moments("model.layers.0.self_attn.o_proj.weight")


def test_the_fingerprint_is_that_of_the_text(checkpoint):
    with open_source(checkpoint) as source:
        tensors = SourceTensors(source, 1)
        one, same, other = (SequentialCalibration(tensors, pieces, 1) for pieces in (PIECES, PIECES, PIECES[1:]))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_matrices_behind_an_input():
    from tests.cpu.random_models import config

    prefix = "model.layers.1."
    assert matrices_behind("activation", config(), 1) == [f"{prefix}mlp.down_proj.weight"]
    assert matrices_behind("mlp", config(), 1) == [f"{prefix}mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    assert matrices_behind("attention", config(), 1)[0] == f"{prefix}self_attn.o_proj.weight"
