"""Shared by all tests: no traces in the user's folders, no settings from the user's environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import tiers
from tests.inherited_signals import restore_signals

REPOSITORY = Path(__file__).resolve().parent.parent

# First examples compile kernels, so there is no deadline. Every run uses the same examples.
settings.register_profile("everything", deadline=None, derandomize=True)
settings.register_profile("quick", settings.get_profile("everything"), max_examples=20)


# Child processes inherit ignored signals: SIGHUP from nohup, SIGINT from background jobs.
restore_signals()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run every test, with all of its examples")


def pytest_configure(config: pytest.Config) -> None:
    """Set the tier before any test is imported."""
    tiers.everything = bool(config.getoption("--slow"))
    settings.load_profile("everything" if tiers.everything else "quick")


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if tiers.everything else "the slow tests are left out: --slow runs them too"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect slow tests, except those that are named."""
    if tiers.everything or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run a few named files in this process, for debuggers and `print`; otherwise use every processor."""
    return 0 if all(Path(argument.partition("::")[0]).suffix == ".py" for argument in config.args) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file together, because they share fixtures."""
    from tests.scheduling import GroupedScheduling

    return GroupedScheduling(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(scope="session", autouse=True)
def private_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use temporary folders for models, sessions and configuration, and remove the user's QWCHAT_* variables.

    QWCHAT_SIMD stays, so that a whole run can use one SIMD level.
    """
    kept = {name: value for name, value in os.environ.items() if name.startswith("QWCHAT_")}
    with pytest.MonkeyPatch.context() as patch:
        for name in kept:
            if name != "QWCHAT_SIMD":
                patch.delenv(name)
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED"):
            patch.delenv(name, raising=False)
        patch.setenv("QWCHAT_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.setenv("QWCHAT_CONFIG", str(tmp_path_factory.mktemp("config")))
        patch.setenv("QWCHAT_SESSIONS", str(tmp_path_factory.mktemp("sessions")))
        yield


@pytest.fixture(scope="session")
def shared_qwen2() -> Path:
    """Return the folder of the published Qwen2 configs and tokenizer files, if it is beside the checkout."""
    folder = REPOSITORY.parent / "shared" / "qwen2"
    if not folder.is_dir():
        pytest.skip("shared/qwen2 (the published Qwen2 files) is not beside this checkout")
    return folder
