"""How many cores a process may use: its affinity mask, or less where a control group says so."""

import os
from pathlib import Path

import pytest

from forebay.host.cores import usable_cores

CORES = len(os.sched_getaffinity(0))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(("limit", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", CORES)])
def test_a_cgroup_v2_limit_counts_whole_cores_and_never_none(tmp_path: Path, limit: str, cores: int) -> None:
    write(tmp_path / "membership", "0::/pod/worker\n")
    write(tmp_path / "root/pod/worker/cpu.max", limit + "\n")

    assert usable_cores(tmp_path / "membership", tmp_path / "root") == cores


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/pod/worker\n")
    write(tmp_path / "root/pod/worker/cpu.max", "max 100000\n")
    write(tmp_path / "root/pod/cpu.max", "100000 100000\n")

    assert usable_cores(tmp_path / "membership", tmp_path / "root") == 1


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("-1", CORES)])
def test_a_cgroup_v1_limit_counts(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "membership", "4:memory:/pod\n3:cpu,cpuacct:/pod\n")
    write(tmp_path / "root/cpu/pod/cpu.cfs_quota_us", quota + "\n")
    write(tmp_path / "root/cpu/pod/cpu.cfs_period_us", "100000\n")

    assert usable_cores(tmp_path / "membership", tmp_path / "root") == cores


def test_without_control_groups_the_affinity_mask_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "absent", tmp_path) == CORES
