"""How many cores this process may keep busy."""

import os
from pathlib import Path

_CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cores(membership: Path = _CGROUP_MEMBERSHIP, root: Path = _CGROUP_ROOT) -> int:
    """Cores of the affinity mask, or fewer when a control group (v2, or v1's cpu controller) grants less; >= 1.

    A container limited to 1.5 CPUs gets one: a thread more than the quota makes every barrier wait for the next period.
    """
    granted = [len(os.sched_getaffinity(0)), *_quotas(membership, root)]
    return max(1, int(min(granted)))


def _quotas(membership: Path, root: Path) -> list[float]:
    """CPUs granted by each control group from ours up to the root that sets a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_v2 = not controllers
        if not is_v2 and "cpu" not in controllers.split(","):
            continue
        base = root if is_v2 else root / "cpu"
        own = base / path.lstrip("/")
        for folder in (own, *(one for one in own.parents if one == base or base in one.parents)):
            quota = _v2_quota(folder) if is_v2 else _v1_quota(folder)
            if quota is not None:
                quotas.append(quota)
    return quotas


def _v2_quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _v1_quota(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota < 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
