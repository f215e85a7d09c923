"""The check of a converted model before it is published: it sees a complete folder, stores its figures, or refuses."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest

from quant.container import MANIFEST_NAME, open_model
from quant.conversion import ConversionEvent, ConversionFinished, QualityCheckStarted, TensorFinished
from quant.destination import partial_folder
from quant.errors import QualityError
from quant.quality import Quality
from quant.verification import verify
from tests.quant.converting import content, run
from tests.quant.deadly_calls import FORK, die_at_call

QUALITY = Quality(0.0021, 0.05, 0.968, 1200, "sample")


def measure(folder: Path) -> Quality:
    """Return fixed figures for a folder that must be complete."""
    assert verify(open_model(folder)) == {}
    return QUALITY


def finished(events: list[ConversionEvent]) -> ConversionFinished:
    assert isinstance(events[-1], ConversionFinished)
    return events[-1]


def test_the_check_sees_the_complete_model_and_its_figures_are_stored(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    events = run(source, tmp_path / "model", check=measure)
    assert finished(events).quality == open_model(tmp_path / "model").quality == QUALITY
    places = [number for number, event in enumerate(events) if isinstance(event, TensorFinished | QualityCheckStarted)]
    assert isinstance(events[places[-1]], QualityCheckStarted)
    manifest = json.loads((tmp_path / "model" / MANIFEST_NAME).read_text())
    del manifest["quality"]
    assert manifest == json.loads(expected[MANIFEST_NAME])
    others = {name: data for name, data in content(tmp_path / "model").items() if name != MANIFEST_NAME}
    assert others == {name: data for name, data in expected.items() if name != MANIFEST_NAME}


def test_a_check_that_measures_nothing_stores_nothing(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    events = run(source, tmp_path / "model", check=lambda folder: None)
    assert finished(events).quality is None
    assert content(tmp_path / "model") == expected


@pytest.mark.parametrize("force", [False, True])
def test_a_refused_model_leaves_everything_as_it_was(source: Path, tmp_path: Path, force: bool) -> None:
    if force:
        run(source, tmp_path / "model", preset="q8")
    before = content(tmp_path / "model") if force else None

    def refuse(folder: Path) -> Quality:
        raise QualityError("too far")

    with pytest.raises(QualityError, match="too far"):
        run(source, tmp_path / "model", force=force, check=refuse)
    assert (content(tmp_path / "model") if force else None) == before
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if force else [])


def test_an_interrupted_check_is_repeated_without_converting_again(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    def interrupt(folder: Path) -> Quality:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "model", check=interrupt)
    assert not (tmp_path / "model").exists()
    assert partial_folder(tmp_path / "model").exists()
    events = run(source, tmp_path / "model", check=measure, resume=True)
    assert not [event for event in events if isinstance(event, TensorFinished)]
    assert open_model(tmp_path / "model").quality == QUALITY


def test_a_published_model_is_complete_with_or_without_figures(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "model", check=measure)
    for check in (None, measure):
        again = run(source, tmp_path / "model", check=check, resume=True)
        assert finished(again).quality == QUALITY
        assert not [event for event in again if isinstance(event, TensorFinished | QualityCheckStarted)]


@pytest.mark.slow
def test_killed_at_every_one_of_the_last_calls(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    outcomes = set()
    for number in range(100, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        child = FORK.Process(target=die_at_call, args=(number, partial(run, source, folder / "model", check=measure)))
        child.start()
        child.join()
        outcomes.add(child.exitcode)
        if (folder / "model").exists():
            assert open_model(folder / "model").quality == QUALITY
        run(source, folder / "model", check=measure, resume=True)
        assert open_model(folder / "model").quality == QUALITY
        assert verify(open_model(folder / "model")) == {}
        assert [path.name for path in folder.iterdir()] == ["model"]
        if child.exitcode == 0:
            break
    assert outcomes == {0, -signal.SIGKILL}
