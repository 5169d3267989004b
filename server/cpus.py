"""The number of processors that this process may use. Reads /proc and /sys; changes nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Return the number of processors that this process may use, at least 1.

    Respects the CPU affinity (sched_setaffinity(2)) and the quotas of the process's control groups (Linux kernel
    documentation, "Control Group v2", cpu.max; version 1: cpu.cfs_quota_us). A quota of a part of a processor
    counts as a whole one.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cgroup_quota(OWN_CGROUP, CGROUPS)
    return count if quota is None else min(count, math.ceil(quota))


def cgroup_quota(own_cgroup: Path, mount: Path) -> float | None:
    """Return the smallest CPU quota of the control groups in which the process is, in processors.

    own_cgroup: a file in the format of /proc/self/cgroup. mount: where the hierarchies are mounted. Return None if no
    group has a quota or the system has no control groups.
    """
    quotas = [quota for folder in cgroup_folders(own_cgroup, mount, "cpu") if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def cgroup_folders(own_cgroup: Path, mount: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's groups and of all groups above them (cgroups(7), "/proc/pid/cgroup").

    controller: whose hierarchy; that of version 2 counts for every one.
    """
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        folder = root / path.lstrip("/")
        # In a container the path may be that of the host, while only the container's own group is mounted, as the root.
        yield from (folder, *(above for above in folder.parents if above.is_relative_to(root)))


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
