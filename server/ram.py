"""The memory that this process may use. Reads /proc and /sys; changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from server.cpus import CGROUPS, OWN_CGROUP, cgroup_folders

# What is assumed of a system that does not tell.
UNKNOWN_MEMORY = 1 << 30
# PostgreSQL's largest value has a gigabyte (manual, "PostgreSQL Limits").
MOST_FOR_VALUES = 1 << 30


def memory_for_values(workers: int) -> int:
    """Return how many bytes of memory each of so many workers may use for large values."""
    return min(available_memory() // 4 // workers, MOST_FOR_VALUES)


def available_memory() -> int:
    """Return how many bytes of memory the process may use: those of the machine, or fewer in a control group."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        machine = UNKNOWN_MEMORY
    limit = cgroup_limit(OWN_CGROUP, CGROUPS)
    return machine if limit is None else min(machine, limit)


def cgroup_limit(own_cgroup: Path, mount: Path) -> int | None:
    """Return the smallest memory limit of the control groups in which the process is, in bytes.

    own_cgroup: a file in the format of /proc/self/cgroup. mount: where the hierarchies are mounted. Return None if no
    group has a limit or the system has no control groups. Source: Linux kernel documentation, "Control Group v2",
    memory.max; version 1: memory.limit_in_bytes, a huge number without a limit.
    """
    folders = cgroup_folders(own_cgroup, mount, "memory")
    limits = [limit for folder in folders if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None
