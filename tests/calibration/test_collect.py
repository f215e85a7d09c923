import numpy as np
import pytest

from quant.calibration import StatisticsWriter, block_sizes, open_statistics
from quant.calibration import moments as moments_module
from quant.errors import DiskFullError
from quant.sources import open_source
from qwchat.calibration.collect import collect, required_memory, statistics_header
from qwchat.calibration.layer_runner import LayerRunner
from qwchat.calibration.source_tensors import SourceTensors
from qwchat.errors import NonFiniteLogitsError, NotEnoughMemoryError
from tests.calibration.reference_moments import distance, moments_of, reference_inputs
from tests.quant.checkpoints import make_checkpoint

QWEN3 = {"model_type": "qwen3", "head_dim": 32}
ODD = {
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 301,
}
MODELS = {
    "qwen2": {"head_dim": 32},
    "qwen2 tied": {"head_dim": 32, "tie_word_embeddings": True},
    "qwen2 odd": ODD,
    "qwen3": QWEN3,
    "qwen3 tied": {**QWEN3, "tie_word_embeddings": True},
}
LENGTHS = [1, 2, 3, 130, 40, 128, 131]


def pieces_of(lengths, vocab=300, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab, length) for length in lengths]


def calibrated(checkpoint, path, pieces, threads=2, stop=None):
    """Write the statistics of some pieces; stop after some events if asked. Return the path."""
    with open_source(checkpoint) as source, StatisticsWriter(path) as writer:
        writer.open_folder(resume=True)
        writer.begin(statistics_header(source.config, source.fingerprint, pieces, "random tokens"))
        if writer.is_published():
            return path
        for number, _ in enumerate(collect(SourceTensors(source, 1), pieces, writer, threads)):
            if number == stop:
                return path
        writer.publish(force=True)
    return path


def blocks_of(path, checkpoint):
    with open_source(checkpoint) as source, open_statistics(path, source.config, source.fingerprint) as statistics:
        return {name: statistics.blocks(name) for name in statistics.header.columns}


@pytest.mark.parametrize("model", MODELS)
def test_moments_are_those_of_the_reference_decoder(tmp_path, model):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides=MODELS[model], k_bias_norm=None)
    pieces = pieces_of(LENGTHS)
    found = blocks_of(calibrated(checkpoint, tmp_path / "s", pieces), checkpoint)
    wanted = moments_of(reference_inputs(checkpoint, pieces))
    assert found.keys() == wanted.keys()
    for name, blocks in found.items():
        assert len(blocks) == 1
        assert distance(blocks[0], wanted[name]) < 2e-5, name


def test_outliers_do_not_disturb_the_moments_of_other_columns(tmp_path):
    def enlarge(tensors):
        tensors["model.layers.0.mlp.down_proj.weight"][5] *= 300
        tensors["model.layers.0.self_attn.k_proj.bias"] *= 300

    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32}, edit=enlarge)
    pieces = pieces_of([100])
    found = blocks_of(calibrated(checkpoint, tmp_path / "s", pieces), checkpoint)
    wanted = moments_of(reference_inputs(checkpoint, pieces))
    for name, blocks in found.items():
        assert distance(blocks[0], wanted[name]) < 1e-4, name


def test_blocks_are_the_diagonal_blocks_of_the_whole_matrix(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32, "intermediate_size": 352})
    pieces = pieces_of([300])
    whole = blocks_of(calibrated(checkpoint, tmp_path / "whole", pieces), checkpoint)
    monkeypatch.setattr(moments_module, "MAX_BLOCK", 128)
    parts = blocks_of(calibrated(checkpoint, tmp_path / "parts", pieces), checkpoint)
    name, start = "model.layers.1.activation", 0
    assert [len(block) for block in parts[name]] == list(block_sizes(352)) == [128, 128, 96]
    for block in parts[name]:
        stop = start + len(block)
        np.testing.assert_allclose(block, whole[name][0][start:stop, start:stop], rtol=1e-5, atol=1e-7)
        start = stop


def test_the_number_of_threads_does_not_change_a_byte(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32})
    pieces = pieces_of([200, 77])
    one, three = (calibrated(checkpoint, tmp_path / str(n), pieces, threads=n).read_bytes() for n in (1, 3))
    assert one == three


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 8])
def test_a_stopped_calibration_continues_with_the_same_bytes(tmp_path, stop):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32})
    pieces = pieces_of([200, 77])
    whole = calibrated(checkpoint, tmp_path / "whole", pieces).read_bytes()
    path = tmp_path / "stopped"
    calibrated(checkpoint, path, pieces, stop=stop)
    assert not path.exists()
    assert calibrated(checkpoint, path, pieces).read_bytes() == whole
    assert sorted(each.name for each in tmp_path.iterdir()) == ["stopped", "tiny", "whole"]


@pytest.mark.parametrize("damage", ["statistics", "residual-1", "journal.jsonl"])
def test_damaged_parts_of_a_stopped_calibration_are_computed_again(tmp_path, damage):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32})
    pieces = pieces_of([200, 77])
    whole = calibrated(checkpoint, tmp_path / "whole", pieces).read_bytes()
    path = tmp_path / "stopped"
    calibrated(checkpoint, path, pieces, stop=6)
    part = tmp_path / ".stopped.partial" / damage
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 255
    part.write_bytes(data)
    assert calibrated(checkpoint, path, pieces).read_bytes() == whole


def test_a_layer_that_overflows_is_named(tmp_path):
    def enlarge(tensors):
        for layer in range(2):
            tensors[f"model.layers.{layer}.mlp.down_proj.weight"][:] = 1e29
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"][:] = 1e29

    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32}, edit=enlarge)
    with pytest.raises(NonFiniteLogitsError, match="layer 0 computed NaN or infinity: check the model's weights"):
        calibrated(checkpoint, tmp_path / "s", pieces_of([100]))


def test_memory_is_counted_beforehand(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32})
    monkeypatch.setattr("qwchat.cpu.memory.available_memory", lambda: 1 << 16)
    with pytest.raises(NotEnoughMemoryError, match=r"the calibration needs .* of memory, but only 64 KiB are free: "):
        calibrated(checkpoint, tmp_path / "s", pieces_of([100]))


def test_a_disk_that_fills_up_is_one_line(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32})
    free = iter([1 << 40, 1000])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": next(free)}))
    with pytest.raises(DiskFullError, match="but the residual stream needs"):
        calibrated(checkpoint, tmp_path / "s", pieces_of([100]))


def test_the_largest_qwen2_that_is_promised_needs_less_than_three_gigabytes():
    from quant.families import parse_config
    from tests.quant.checkpoints import CONFIG

    shapes = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    assert required_memory(parse_config(CONFIG | shapes), 16384) < 3 << 30


def test_a_chunk_of_one_token_leaves_its_inputs(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "tiny", config_overrides={"head_dim": 32})
    pieces = pieces_of([1, 129])
    runner = LayerRunner(pieces, 1)
    seen = {}

    def observe(place, inputs):
        for kind, x in inputs.items():
            assert len(x) == place.stop - place.start
            seen.setdefault(kind, []).append(x.copy())

    with open_source(checkpoint) as source:
        tensors = SourceTensors(source, 1)
        residual = tensors.embed(np.concatenate(pieces))
        assert list(runner.run(tensors, 0, residual, observe)) == [1, 129, 130]
    wanted = reference_inputs(checkpoint, pieces)
    for kind, parts in seen.items():
        found = np.concatenate(parts)
        np.testing.assert_allclose(found, wanted[f"model.layers.0.{kind}"], rtol=1e-4, atol=1e-5)
