"""How many processors there are for a process, and how many slots that makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from continuum.config import default_slots, load_settings
from continuum.cpus import usable_cpus

HOST = 64


@pytest.fixture(autouse=True)
def _a_large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(HOST)))


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A root directory with these files in it."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({}, HOST, id="no control groups"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2, id="a container"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, HOST, id="no quota"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5, id="half of one"),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9999999 100000"}, HOST, id="more than there are"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a.slice/b.service",
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000",
                "sys/fs/cgroup/a.slice/cpu.max": "150000 100000",
            },
            1.5,
            id="a quota of a slice around a service",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "9:name=systemd:/\n3:cpuacct,cpu:/docker/abc\n2:cpuset:/\n0::/x",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3,
            id="version 1, seen from the host",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "1:cpu:/docker/abc",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
            id="version 1, in a container that does not see its own path",
        ),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"}, HOST, id="nonsense"),
        pytest.param(
            {"proc/self/cgroup": "0::/../../outside", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1, id="outside"
        ),
        pytest.param({"proc/self/cgroup": "garbage"}, HOST, id="garbage"),
    ],
)
def test_a_quota_counts_wherever_it_is_set(files: Mapping[str, str], cpus: float, tmp_path: Path) -> None:
    assert usable_cpus(tree(tmp_path, files)) == cpus


def test_a_process_that_may_run_on_some_processors_only_has_those(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cpus(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus(tmp_path) == (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("cpus", "cpu_limit", "slots"),
    [
        (2, 0.5, 4),
        (2, 0.25, 8),
        (2, 1, 4),
        (2, 8, 4),
        (2, 0.01, 16),
        (0.5, 0.5, 1),
        (0.1, 4, 1),
        (1.5, 0.5, 3),
        (500, 0.1, 1024),
    ],
)
def test_there_are_slots_enough_to_keep_the_processors_busy(cpus: float, cpu_limit: float, slots: int) -> None:
    assert default_slots(cpus, cpu_limit) == slots


def test_slots_are_chosen_from_both_unless_somebody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continuum.config.usable_cpus", lambda: 2.0)
    monkeypatch.delenv("SLOTS", raising=False)
    monkeypatch.setenv("CONTAINER_CPU_LIMIT", "0.25")
    assert load_settings().slots == 8
    assert load_settings(slots=3).slots == 3
    assert load_settings(slots=3).model_copy().slots == 3
    monkeypatch.setenv("SLOTS", "5")
    assert load_settings().slots == 5
