"""Conversions with a calibration are recorded, resumable, and independent of threads and chunks."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats, tensor_pipeline
from quant.calibration import InputMoments, input_of, open_statistics
from quant.container import open_model
from quant.conversion import (
    CalibrationOpener,
    ConversionAdvanced,
    ConversionNotice,
    ConversionPlanned,
    TensorFinished,
    convert,
)
from quant.errors import ArgumentError, StatisticsError
from quant.formats import PackedTensor
from quant.sources import Source, open_source
from quant.verification import verify
from tests.quant.calibration.made_statistics import random_moments, write_statistics
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import content, run, stop_after
from tests.quant.deadly_calls import FORK, die_at_call
from tests.tiers import count


@pytest.fixture(scope="session", name="statistics")
def write_made_up_statistics(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a statistics file for `source`."""
    return write_statistics(tmp_path_factory.mktemp("statistics") / "tiny.statistics", source)


@pytest.fixture(scope="session", name="calibrated")
def convert_calibrated(source: Path, statistics: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of an uninterrupted calibrated conversion of `source`."""
    folder = tmp_path_factory.mktemp("calibrated")
    run(source, folder / "model", calibration=statistics)
    return content(folder / "model")


def test_manifest_records_the_statistics(source: Path, statistics: Path, tmp_path: Path) -> None:
    events = run(source, tmp_path / "model", calibration=statistics)
    assert isinstance(events[0], ConversionPlanned)
    assert events[0].calibrated
    model = open_model(tmp_path / "model")
    with open_source(source) as opened, open_statistics(statistics, opened.config, opened.fingerprint) as opened_file:
        assert model.manifest["settings"]["calibration"] == opened_file.fingerprint
    assert verify(model) == {}


def test_matrices_change_and_lose_less_on_the_inputs_of_the_statistics(
    source: Path, statistics: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    run(source, tmp_path / "plain")
    run(source, tmp_path / "calibrated", calibration=statistics)
    plain, calibrated = open_model(tmp_path / "plain"), open_model(tmp_path / "calibrated")
    with open_source(source) as opened, open_statistics(statistics, opened.config, opened.fingerprint) as file:
        for name in plain.manifest["tensors"]:
            first, second = plain.tensor(name), calibrated.tensor(name)
            moments = file.moments(name)
            if moments is None:
                assert all(np.array_equal(first.parts[part], second.parts[part]) for part in first.parts)
                continue
            values = opened.read(name)
            assert isinstance(values, np.ndarray)
            errors = [values - formats.dequantise(packed) for packed in (first, second)]
            losses = [np.einsum("ij,jk,ik->", error, moments.blocks[0], error) for error in errors]
            assert losses[1] < 0.9 * losses[0], name


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("weights", [1024, 3000])
def test_bytes_do_not_depend_on_threads_or_chunks(
    source: Path, statistics: Path, calibrated: dict[str, bytes], tmp_path: Path, threads: int, weights: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tensor_pipeline, "FEEDBACK_CHUNK_WEIGHTS", weights)
    run(source, tmp_path / "model", calibration=statistics, threads=threads)
    assert content(tmp_path / "model") == calibrated


@pytest.mark.parametrize("seed", range(count(20, 2)))
def test_killed_at_a_random_system_call(
    source: Path, statistics: Path, calibrated: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    destination, killed = tmp_path / "model", 0
    for attempt, number in enumerate(np.random.default_rng(seed).integers(1, 130, 2)):
        work = partial(run, source, destination, calibration=statistics, resume=attempt > 0)
        child = FORK.Process(target=die_at_call, args=(int(number), work))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        killed += child.exitcode != 0
    run(source, destination, calibration=statistics, resume=True)
    assert content(destination) == calibrated
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_statistics_do_not_continue_or_replace_a_conversion(
    source: Path, statistics: Path, calibrated: dict[str, bytes], tmp_path: Path
) -> None:
    destination = tmp_path / "model"
    stop_after(source, destination, 9)
    with pytest.raises(ArgumentError, match="has another source or other settings"):
        run(source, destination, calibration=statistics, resume=True)
    run(source, destination)
    for resume in (False, True):
        with pytest.raises(ArgumentError, match="already contains a model"):
            run(source, destination, calibration=statistics, resume=resume)
    other = write_statistics(tmp_path / "other", source, seed=1)
    run(source, destination, calibration=other, force=True)
    assert content(destination) != calibrated
    run(source, destination, calibration=statistics, force=True)
    assert content(destination) == calibrated
    notices = [event.text for event in run(source, destination, calibration=statistics, resume=True)
               if isinstance(event, ConversionNotice)]  # fmt: skip
    assert any("already complete" in text for text in notices)


def test_statistics_of_another_model_or_incomplete_ones_are_refused(
    source: Path, statistics: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", config_overrides={"hidden_size": 128})
    foreign = write_statistics(tmp_path / "foreign", other)
    short = tmp_path / "short"
    short.write_bytes(statistics.read_bytes()[:-4])
    for path in (foreign, short, tmp_path / "missing"):
        with pytest.raises(StatisticsError):
            run(source, tmp_path / "model", calibration=path)
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".model*"))


def test_damaged_statistics_leave_no_model(source: Path, statistics: Path, tmp_path: Path) -> None:
    data = bytearray(statistics.read_bytes())
    data[-3] ^= 64
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(StatisticsError, match="does not match its checksum"):
        run(source, tmp_path / "model", calibration=tmp_path / "damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_progress_rises_to_the_bytes_of_the_source(source: Path, statistics: Path, tmp_path: Path) -> None:
    stop_after(source, tmp_path / "model", 9, calibration=statistics)
    events = run(source, tmp_path / "model", calibration=statistics, resume=True)
    done = [event.bytes_done for event in events if isinstance(event, ConversionAdvanced)]
    assert isinstance(events[0], ConversionPlanned)
    assert done == sorted(done)
    assert done[0] > 0
    assert 0.99 * events[0].total_bytes_in < done[-1] <= events[0].total_bytes_in


class RecordingCalibration:
    """Calibration in module order that checks the order in which it is asked.

    Attributes:
        reported: the tensors that were reported as finished, in order.
    """

    fingerprint = "ordered"
    ordered = True

    def __init__(self, source: Source, singular: str = "") -> None:
        self._config, self._names, self._singular = source.config, list(source.tensors), singular
        self._source = source
        self.reported: dict[str, PackedTensor] = {}
        self._moments: dict[str, InputMoments] = {}

    def moments(self, tensor: str) -> InputMoments | None:
        name = input_of(tensor, self._config)
        if name is None:
            return None
        if name not in self._moments:
            self._moments[name] = self._made_up(tensor, name)
        return self._moments[name]

    def _made_up(self, tensor: str, name: str) -> InputMoments:
        from quant.families import expected_tensors

        order = list(expected_tensors(self._config))
        assert list(self.reported) == order[: order.index(tensor)]
        columns = self._source.tensors[tensor].shape[1]
        blocks = random_moments(columns, len(name))
        if name == self._singular:
            first = blocks[0]
            first[0, 1] = first[1, 0] = 1.02 * np.sqrt(first[0, 0] * first[1, 1])
        cross = [block + np.float32(0.05) * np.triu(block) for block in blocks]
        return InputMoments(blocks, 512, cross)

    def finished(self, tensor: str, packed: PackedTensor) -> None:
        formats.check_packed(packed)
        copied = {name: part.copy() for name, part in packed.parts.items()}
        self.reported[tensor] = PackedTensor(packed.format, packed.shape, packed.group_size, copied)


def recorder(made: list[RecordingCalibration], **options: Any) -> CalibrationOpener:
    """Return a function that opens a `RecordingCalibration` and adds it to `made`."""

    def open_calibration(source: Source) -> RecordingCalibration:
        made.append(RecordingCalibration(source, **options))
        return made[-1]

    return open_calibration


def test_ordered_calibration_sees_every_tensor_before_the_next_input(source: Path, tmp_path: Path) -> None:
    made: list[RecordingCalibration] = []
    run(source, tmp_path / "whole", calibration=recorder(made), threads=3)
    model = open_model(tmp_path / "whole")
    assert list(made[0].reported) == list(model.manifest["tensors"])
    for name, packed in made[0].reported.items():
        stored = model.tensor(name)
        assert all(np.array_equal(packed.parts[part], stored.parts[part]) for part in stored.parts)
    stop_after(source, tmp_path / "model", 9, calibration=recorder(made))
    run(source, tmp_path / "model", calibration=recorder(made), resume=True)
    assert content(tmp_path / "model") == content(tmp_path / "whole")
    assert list(made[-1].reported) == list(model.manifest["tensors"])


def test_statistics_that_are_nearly_singular_are_reported(source: Path, tmp_path: Path) -> None:
    singular = "model.layers.1.mlp"
    events = convert(source, tmp_path / "model", calibration=recorder([], singular=singular))
    notices = [event.text for event in events if isinstance(event, ConversionNotice)]
    assert any(text.startswith(f"the statistics of {singular} are nearly singular") for text in notices), notices


def test_tensors_are_converted_in_module_order(source: Path, statistics: Path, tmp_path: Path) -> None:
    events = run(source, tmp_path / "model", calibration=statistics)
    names = [event.name for event in events if isinstance(event, TensorFinished)]
    assert names == list(json.loads((tmp_path / "model" / "manifest.json").read_text())["tensors"])
