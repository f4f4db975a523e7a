"""Processes of a mesh are killed with -9, or stopped, at their work: every answer comes, right, and nothing leaks."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from forebay.rpc.channel import open_channel
from forebay.testing.kill_rounds import SMALL_TIERS, TWO_OF_EACH, Fault, KillRound, Victim, kill_rounds
from forebay.testing.mesh import RunningMesh, running_mesh
from forebay.testing.steady_load import Verdict
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc

ROUNDS = 3  # of each kind


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh(**TWO_OF_EACH, **SMALL_TIERS) as running:
        yield running


async def test_kills_in_the_middle_of_work(mesh: RunningMesh) -> None:
    source = random.Random(9)
    victims = source.sample([*Victim] * ROUNDS, len(Victim) * ROUNDS)
    async with kill_rounds(mesh, source) as killing:
        rounds = [await killing.run(victim) for victim in victims]
    check(rounds)
    assert any(one.resume_count for one in rounds if one.victim is Victim.ROUTER), "another router must have gone on"
    assert not tracebacks(mesh.logs_dir)
    assert await disk_block_count(mesh) > 0, "the load must have been more than memory holds"


async def test_a_silent_worker_is_missed_and_may_come_back(mesh: RunningMesh) -> None:
    """It goes on with sequences that others have ended meanwhile: neither its tokens nor its blocks count any more."""
    async with kill_rounds(mesh, random.Random(10)) as stopping:
        rounds = [await stopping.run(victim, Fault.STOPPED) for victim in (Victim.DECODE, Victim.PREFILL)]
    check(rounds)
    assert not tracebacks(mesh.logs_dir)


def check(rounds: Sequence[KillRound]) -> None:
    verdicts = Counter(outcome.verdict for one in rounds for outcome in one.outcomes)
    assert verdicts[Verdict.WRONG] == verdicts[Verdict.HUNG] == verdicts[Verdict.FAILED] == 0, rounds
    assert verdicts[Verdict.GOOD] > len(rounds)
    assert sum(one.cut_count for one in rounds) > 0, "faults must have met requests"
    assert [one.held_blocks for one in rounds] == [0] * len(rounds)


async def disk_block_count(mesh: RunningMesh) -> int:
    async with open_channel(mesh.address_of("kvcache")) as channel:
        stub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        stats = await stub.GetStats(kvcache_pb2.GetStatsRequest())
    return next(one.sealed_blocks for one in stats.tiers if one.tier == common_pb2.KV_TIER_DISK)


def tracebacks(logs_dir: Path) -> list[str]:
    """Lines of logs that tell of a defect."""
    lines = (line for path in logs_dir.iterdir() for line in path.read_text().splitlines())
    return [line for line in lines if "Traceback" in line or "level=error" in line]
