import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from quant.calibration import (
    StatisticsHeader,
    StatisticsWriter,
    block_sizes,
    input_columns,
    input_of,
    moments,
    open_statistics,
)
from quant.calibration.statistics_file import StatisticsFile
from quant.errors import ArgumentError, DiskFullError, StatisticsError
from quant.families import expected_tensors
from quant.sources import open_source
from tests.quant.calibration.made_statistics import random_moments, write_statistics
from tests.quant.checkpoints import make_checkpoint
from tests.tiers import count


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def file(source):
    return write_statistics(source.parent / "tiny.stats", source)


def opened(path: Path, source: Path) -> StatisticsFile:
    with open_source(source) as checkpoint:
        return open_statistics(path, checkpoint.config, checkpoint.fingerprint)


def config_of(source):
    with open_source(source) as checkpoint:
        return checkpoint.config


def test_every_matrix_finds_the_moments_that_were_written(source, file):
    config = config_of(source)
    order = list(input_columns(config))
    with opened(file, source) as statistics:
        for tensor, shape in expected_tensors(config).items():
            name, found = input_of(tensor, config), statistics.moments(tensor)
            if len(shape) == 1 or tensor == "model.embed_tokens.weight":
                assert name is None
                assert found is None
                continue
            assert found is not None
            assert found.samples == 512
            assert found.cross is None
            assert sum(map(len, found.blocks)) == shape[1]
            wanted = random_moments(shape[1], order.index(name))
            for got, block in zip(found.blocks, wanted, strict=True):
                np.testing.assert_array_equal(np.tril(got), np.tril(block))
                np.testing.assert_array_equal(got, got.T)


def test_matrices_of_one_input_share_its_moments(source, file):
    with opened(file, source) as statistics:
        first = statistics.moments("model.layers.1.self_attn.q_proj.weight")
        assert statistics.moments("model.layers.1.self_attn.v_proj.weight") is first
        assert statistics.moments("model.layers.1.self_attn.o_proj.weight") is not first


def test_the_head_of_a_tied_model_is_its_embedding(tmp_path):
    source = make_checkpoint(tmp_path / "tied", config_overrides={"tie_word_embeddings": True})
    with opened(write_statistics(tmp_path / "s", source), source) as statistics:
        found = statistics.moments("model.embed_tokens.weight")
        assert found is not None
        assert len(found.blocks[0]) == 64


@pytest.mark.parametrize(
    ("columns", "sizes"),
    [
        (64, (64,)),
        (5120, (5120,)),
        (8960, (4480, 4480)),
        (18944, (4736,) * 4),
        (11008, (3712, 3712, 3584)),
        (5121, (2688, 2433)),
    ],
)
def test_blocks_are_few_nearly_equal_and_begin_at_whole_groups(columns, sizes):
    assert block_sizes(columns) == sizes


def test_an_input_of_several_blocks_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "MAX_BLOCK", 128)
    source = make_checkpoint(tmp_path / "wide", config_overrides={"intermediate_size": 352})
    with opened(write_statistics(tmp_path / "s", source), source) as statistics:
        blocks = statistics.blocks("model.layers.0.activation")
        assert [len(block) for block in blocks] == [128, 128, 96]
        wanted = random_moments(352, 3)
        for got, block in zip(blocks, wanted, strict=True):
            np.testing.assert_array_equal(np.tril(got), np.tril(block))


def test_other_programs_read_the_file_as_safetensors(file):
    with safe_open(file, "np") as tensors:
        packed = tensors.get_tensor("model.layers.0.input.0")
        assert tensors.metadata()["samples"] == "512"
    triangle = np.tril(random_moments(64, 0)[0])
    np.testing.assert_array_equal(packed, triangle[np.tril_indices(64)])


def test_statistics_of_another_model_are_refused(tmp_path, file):
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(StatisticsError, match=r"belongs to another model; calibrate the model again$"):
        opened(file, other)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, source):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(StatisticsError):
            opened(path, source)


def rewritten(file: Path, target: Path, edit) -> Path:
    """Write a copy of a statistics file whose header was changed by `edit`."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = edit(header) or header
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return target


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h.pop("__metadata__") and None, "the key '__metadata__' (object) is missing"),
        (lambda h: h["__metadata__"].update(format="pt"), "format is 'pt', expected 'qwchat-statistics'"),
        (lambda h: h["__metadata__"].update(format_version="2"), "format_version is '2', but this program reads 1"),
        (lambda h: h["__metadata__"].update(samples="0"), "samples is '0', expected a number"),
        (lambda h: h["__metadata__"].update(samples="²"), "samples is '²', expected a number"),
        (lambda h: h["__metadata__"].pop("sha256:head") and None, "'sha256:head' (string) is missing"),
        (lambda h: h["head.0"].update(shape=[1 << 61]), "shape is [2305843009213693952]"),
        (lambda h: h["head.0"].update(shape=[1 << 40]), "contradicts itself"),
        (lambda h: h["head.0"].update(dtype="F16"), "contradicts itself"),
        (lambda h: h["head.0"].update(data_offsets=[0, 8320]), "contradicts itself"),
        (lambda h: {"__metadata__": h["__metadata__"]}, "the header lists no input"),
        (lambda h: h.update({"more.0": h["head.0"]}), "'sha256:more' (string) is missing"),
        (lambda h: [1], "not an object"),
    ],
)
def test_a_header_that_a_writer_would_not_write_is_refused(tmp_path, source, file, edit, message):
    with pytest.raises(StatisticsError) as caught:
        opened(rewritten(file, tmp_path / "s", edit), source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1])
def test_a_truncated_file_is_refused(tmp_path, source, file, size):
    path = tmp_path / "s"
    path.write_bytes(file.read_bytes()[:size])
    with pytest.raises(StatisticsError):
        opened(path, source)


def test_a_header_that_claims_more_than_the_file_has_is_not_read(tmp_path, source):
    path = tmp_path / "s"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(StatisticsError, match="is not a statistics file, or truncated"):
        opened(path, source)


def test_changed_data_does_not_match_its_checksum(tmp_path, source, file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "s"
    path.write_bytes(data)
    with (
        opened(path, source) as statistics,
        pytest.raises(StatisticsError, match="the data of head does not match its checksum; calibrate"),
    ):
        statistics.moments("lm_head.weight")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_moments_are_refused(tmp_path, source, monkeypatch, value):
    def spoilt(columns, seed, samples):
        blocks = random_moments(columns, seed, samples)
        blocks[0][0, 0] = value
        return blocks

    monkeypatch.setattr("tests.quant.calibration.made_statistics.random_moments", spoilt)
    with (
        opened(write_statistics(tmp_path / "s", source), source) as statistics,
        pytest.raises(StatisticsError, match="is not a matrix of second moments"),
    ):
        statistics.moments("lm_head.weight")


def problem(path, source, config) -> str:
    """Read a whole file; return the message of its refusal, or "" if its values are finite."""
    try:
        with opened(path, source) as statistics:
            blocks = [block for name in input_columns(config) for block in statistics.blocks(name)]
    except StatisticsError as error:
        return str(error)
    assert all(np.isfinite(block).all() for block in blocks)
    return ""


def test_random_changes_are_refused_or_harmless(tmp_path, source, file):
    original = file.read_bytes()
    choice = random.Random(0)
    config = config_of(source)
    path = tmp_path / "s"
    for _ in range(count(600, 60)):
        data = bytearray(original)
        end = choice.choice([300, 4000, len(data)])
        for _ in range(choice.randint(1, 4)):
            data[choice.randrange(end)] = choice.randrange(256)
        if choice.random() < 0.2:
            del data[choice.randrange(len(data)) :]
        path.write_bytes(data)
        assert "\n" not in problem(path, source, config)


def test_a_file_is_not_replaced_unless_forced(source, tmp_path):
    path = write_statistics(tmp_path / "s", source)
    before = path.read_bytes()
    header = StatisticsHeader("x", 1, "made up", "0" * 64, {"head": 32})
    with StatisticsWriter(path) as writer:
        with pytest.raises(ArgumentError, match="already exists; use force=True to replace it"):
            writer.check_destination(force=False)
        writer.open_folder(resume=False)
        writer.begin(header)
        writer.write("head", [np.eye(32, dtype=np.float32)])
        writer.publish(force=True)
    assert path.read_bytes() != before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s"]


def test_other_files_are_never_replaced(source, tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(ArgumentError, match="exists and is not a statistics file; choose another"):
        write_statistics(tmp_path / "s", source)
    assert (tmp_path / "s").read_text() == "mine"


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskFullError, match=r"has 1\.00 kB free, but the statistics file needs"):
        write_statistics(tmp_path / "s", source)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_line(source, tmp_path):
    with pytest.raises(ArgumentError, match="is not a folder; create it first"):
        write_statistics(tmp_path / "absent" / "s", source)
