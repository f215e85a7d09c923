"""Number of threads: cores, affinity and quotas, read from made-up system files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwchat.cpu.kernels import thread_counts

Machine = Callable[..., int]


@pytest.fixture
def threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return the count for sibling lists, /proc/self/cgroup, the allowed CPUs and files below /sys/fs/cgroup."""

    def count(
        siblings: list[str], membership: str | None = "0::/", allowed: set[int] | None = None, **files: str
    ) -> int:
        for cpu, text in enumerate(siblings):
            topology = tmp_path / "cpus" / f"cpu{cpu}" / "topology"
            topology.mkdir(parents=True, exist_ok=True)
            (topology / "thread_siblings_list").write_text(text + "\n")
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        if membership is not None:
            (tmp_path / "membership").write_text(membership + "\n")
        for name, path in (("_CPUS", "cpus"), ("_CGROUP", "cgroup"), ("_MEMBERSHIP", "membership")):
            monkeypatch.setattr(thread_counts, name, tmp_path / path)
        monkeypatch.setattr(thread_counts, "usable_processors", lambda: allowed or set(range(len(siblings))))
        return thread_counts.default_threads()

    return count


FOUR_CORES = ["0,4", "1,5", "2,6", "3,7"] * 2
HYBRID = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]  # two fast cores with two threads each, four slow ones


def test_hyper_threads_of_a_core_count_once(threads: Machine) -> None:
    assert threads(FOUR_CORES) == 4
    assert threads(FOUR_CORES, allowed={0, 1, 4}) == 2
    assert threads(HYBRID) == 6


def test_without_a_topology_every_cpu_counts(threads: Machine) -> None:
    assert threads([], allowed={0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 4),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "900000 100000"}, 4),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "300000 100000"}, 2),
        ("0::/not/visible/here", {"cpu.max": "200000 100000"}, 2),
        ("0::/../b", {"cpu.max": "100000 100000"}, 4),
        ("0::/\n3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (
            "3:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/x/cpu.cfs_period_us": "50000"},
            1,
        ),
        ("3:cpu:/docker/id", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("3:cpuset:/x", {"x/cpu.max": "100000 100000"}, 4),
        (None, {"cpu.max": "100000 100000"}, 1),
        ("0::/", {"cpu.max": "what is this"}, 4),
    ],
)
def test_the_tightest_quota_counts(
    threads: Machine, membership: str | None, files: dict[str, str], expected: int
) -> None:
    assert threads(FOUR_CORES, membership, **files) == expected


def test_this_machine_has_a_count() -> None:
    assert 1 <= thread_counts.default_threads() <= len(thread_counts.usable_processors())


def run(size: int, seconds: Callable[[int], float], steps: int) -> list[int]:
    """Return the counts that are chosen for consecutive steps, each of which takes `seconds(count)`."""
    decode, chosen = thread_counts.DecodeThreadTuner(size), []
    for _ in range(steps):
        chosen.append(decode.choose())
        decode.record(seconds(chosen[-1]))
    return chosen


@pytest.mark.parametrize(("size", "enough"), [(16, 4), (16, 8), (16, 16), (6, 3), (6, 6), (4, 2), (3, 3), (8, 1)])
def test_decoding_uses_as_few_threads_as_saturate_the_memory(size: int, enough: int) -> None:
    chosen = run(size, lambda count: 0.01 / min(count, enough), 1000)
    assert set(chosen[40:]) == {enough}
    # The trials cost little more than a few steps.
    assert sum(count < enough for count in chosen) <= 3


def test_with_two_threads_nothing_is_tried() -> None:
    for size in (1, 2):
        assert set(run(size, lambda count: 1.0, 3000)) == {size}


def test_the_trial_is_repeated() -> None:
    steps = iter(range(3000))
    chosen = run(8, lambda count: 0.01 / (min(count, 4) if next(steps) < 900 else count), 3000)
    assert set(chosen[100:1000]) == {4}
    assert set(chosen[1100:2000]) == {8}


def test_one_slow_step_does_not_mislead() -> None:
    # Two warm-up steps, then all threads and half of them in turn.
    times = iter([1.0, 1.0, 1.0, 2.0, 50.0, 2.0, 1.0, 2.0])
    assert run(4, lambda count: next(times), 8)[2:] == [4, 2, 4, 2, 4, 2]
    times = iter([1.0, 1.0, 1.0, 2.0, 50.0, 2.0, 1.0, 2.0, *[1.0] * 20])
    assert set(run(4, lambda count: next(times), 28)[8:]) == {4}
