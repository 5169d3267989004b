"""`server/cpus.py`: affinity and the quotas of control groups, from tables of files and in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import cpus
from server.cpus import available_cpus, cgroup_quota
from server.settings import Settings
from tests.support.live_server import ROOT

# Each case: the lines of /proc/self/cgroup, the files below the mount, the quota in processors.
QUOTAS: dict[str, tuple[str, dict[str, str], float | None]] = {
    "v2: whole processors": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "v2: a part of a processor": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    "v2: another period": ("0::/\n", {"cpu.max": "25000 50000\n"}, 0.5),
    "v2: no quota": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "v2: no files": ("0::/\n", {}, None),
    "v2: an unreadable file": ("0::/\n", {"cpu.max": "nonsense"}, None),
    "v2: a period of zero": ("0::/\n", {"cpu.max": "100000 0"}, None),
    "v2: the group's own": ("0::/a.slice/b\n", {"a.slice/b/cpu.max": "100000 100000"}, 1.0),
    "v2: that of a group above": ("0::/a.slice/b\n", {"a.slice/cpu.max": "100000 100000"}, 1.0),
    "v2: the smallest of all above": (
        "0::/a/b/c\n",
        {
            "cpu.max": "400000 100000",
            "a/cpu.max": "300000 100000",
            "a/b/cpu.max": "max 100000",
            "a/b/c/cpu.max": "350000 100000",
        },
        3.0,
    ),
    "v2: not that of another group": ("0::/a\n", {"b/cpu.max": "100000 100000", "a/cpu.max": "max 100000"}, None),
    "v2: a path of the host in a container": ("0::/docker/0123\n", {"cpu.max": "100000 100000"}, 1.0),
    "v2: above the root of the mount": ("0::/../a\n", {"cpu.max": "100000 100000"}, 1.0),
    "v1": (
        "4:memory:/m\n3:cpu,cpuacct:/a\n",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "v1: no quota": (
        "3:cpu:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "v1: that of a group above": (
        "3:cpu:/a/b\n",
        {
            "cpu/a/b/cpu.cfs_quota_us": "-1",
            "cpu/a/b/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "100000",
            "cpu/cpu.cfs_period_us": "100000",
        },
        1.0,
    ),
    "v1: other controllers do not count": (
        "3:cpuset:/a\n2:cpuacct:/a\n",
        {"cpuset/a/cpu.cfs_quota_us": "100000", "cpuset/a/cpu.cfs_period_us": "100000"},
        None,
    ),
    "v1: a quota without its period": ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000"}, None),
    "v1 and v2 together": (
        "3:cpu:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "200000 100000"},
        2.0,
    ),
}


def lay_out(folder: Path, files: dict[str, str]) -> Path:
    mount = folder / "cgroup"
    mount.mkdir()
    for name, text in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return mount


@pytest.mark.parametrize(("lines", "files", "quota"), QUOTAS.values(), ids=QUOTAS)
def test_the_quota_of_control_groups(lines: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    mount = lay_out(tmp_path, files)
    (tmp_path / "own").write_text(lines)
    assert cgroup_quota(tmp_path / "own", mount) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "missing", tmp_path / "missing too") is None


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [
        (8, "max 100000", 8),
        (8, "400000 100000", 4),
        (8, "150000 100000", 2),  # a fraction of a processor counts as a whole one
        (8, "100001 100000", 2),
        (8, "1000 100000", 1),
        (2, "400000 100000", 2),  # the smaller one of both counts
        (1, "max 100000", 1),
    ],
)
def test_the_smaller_one_of_affinity_and_quota_counts(
    affinity: int, quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = lay_out(tmp_path, {"cpu.max": quota})
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(cpus, "CGROUPS", mount)
    monkeypatch.setattr(cpus, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    assert available_cpus() == expected
    assert Settings().most_readers == min(expected, 4)
    assert Settings(parallel_readers=7).most_readers == 7


def test_settings_count_the_processors_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([2, 3])
    monkeypatch.setattr("server.settings.available_cpus", lambda: next(counts))
    settings = Settings()
    assert [settings.most_readers, settings.most_readers] == [2, 2]
    assert Settings().most_readers == 3


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_without_affinity_the_number_of_processors_counts(
    count: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "OWN_CGROUP", tmp_path / "missing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert available_cpus() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_bound_to_one_processor_has_one_and_one_reader() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from server.cpus import available_cpus\n"
        "from server.settings import read_settings\n"
        "print(available_cpus(), read_settings({}).most_readers, read_settings({'PARALLEL_READERS': '3'}).most_readers)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1 3\n", done.stderr
