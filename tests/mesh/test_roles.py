"""Workers of a mesh under load change roles, by name and as advised: every answer comes, right, and nothing leaks."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from forebay.client import AsyncClient, Client
from forebay.errors import NothingToAdviseError
from forebay.mesh.record import read_record
from forebay.testing.drain_rounds import DrainRound, drain_rounds
from forebay.testing.kill_rounds import TWO_OF_EACH
from forebay.testing.mesh import RunningMesh, running_mesh
from forebay.testing.steady_load import Verdict


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh(**TWO_OF_EACH) as running:
        yield running


def forebay(mesh: RunningMesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forebay.cli", *arguments],
        env={**os.environ, "FOREBAY_STATE_DIR": str(mesh.state_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check(rounds: list[DrainRound]) -> None:
    outcomes = [outcome for one in rounds for outcome in one.outcomes]
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    assert verdicts[Verdict.WRONG] == verdicts[Verdict.HUNG] == verdicts[Verdict.FAILED] == 0, verdicts
    assert verdicts[Verdict.GOOD] > len(rounds)
    assert [one.held_blocks for one in rounds] == [0] * len(rounds)
    assert sum(outcome.recomputed_tokens for outcome in outcomes) == 0


async def roles_in_fleet(mesh: RunningMesh) -> Counter[str]:
    async with AsyncClient(mesh.router_addresses) as client:
        members = (await client.fleet()).members
    return Counter(one.role for one in members if one.role in {"prefill", "decode"})


async def test_workers_change_roles_under_load_and_back(mesh: RunningMesh) -> None:
    async with drain_rounds(mesh, random.Random(12)) as draining:
        rounds = [await draining.switch("prefill-0", "decode")]
        assert await roles_in_fleet(mesh) == {"prefill": 1, "decode": 3}
        rounds.append(await draining.switch("decode-0", "prefill"))
        rounds.append(await draining.switch("decode-2", "prefill"))
        assert await roles_in_fleet(mesh) == {"prefill": 3, "decode": 1}
        rounds.append(await draining.switch("prefill-2", "decode"))
        record = draining.record
    check(rounds)
    assert [one.name for one in rounds] == ["decode-2", "prefill-0", "prefill-2", "decode-0"]
    assert await roles_in_fleet(mesh) == {"prefill": 2, "decode": 2}
    assert (record.prefill_count, record.decode_count) == (2, 2)
    assert all(one.process.is_running() for one in record.services)


def test_the_command_shows_what_was_asked_and_what_each_split_would_come_to(mesh: RunningMesh) -> None:
    shown = forebay(mesh, "roles")
    assert shown.returncode == 0, shown.stderr
    assert "requests (" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines()[2:5]] == ["1:3", "2:2", "3:1"]
    told: dict[str, Any] = json.loads(forebay(mesh, "roles", "--json").stdout)
    assert told["demand"]["requests"] > 0
    assert told["demand"]["prompt_tokens"] > 0
    assert [len(one["prefill_ids"]) for one in told["splits"]] == [1, 2, 3]
    assert told["switched"] == {}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("prefill-0",), 2, "SERVICE and --to go together"),
        (("prefill-0", "--to", "decode", "--apply"), 2, "leave SERVICE out"),
        (("router-0", "--to", "decode"), 2, "only prefill and decode workers change roles"),
        (("decode-9", "--to", "prefill"), 2, "the mesh has no service 'decode-9'"),
        (("--first-token-ms", "-1"), 1, "must be positive"),
    ],
)
def test_what_cannot_be_is_said(mesh: RunningMesh, arguments: tuple[str, ...], code: int, words: str) -> None:
    told = forebay(mesh, "roles", *arguments)
    assert (told.returncode, words in told.stderr) == (code, True), told.stderr


def test_a_mesh_without_prefill_workers_is_told_so() -> None:
    with running_mesh(prefill_count=0) as mesh:
        with Client(mesh.router_address) as client, pytest.raises(NothingToAdviseError):
            client.advise_roles()
        refused = forebay(mesh, "roles", "decode-0", "--to", "prefill")
        assert "the last decode worker" in refused.stderr
        record = read_record(mesh.state_dir)
        assert record is not None
        assert record.decode_count == 1
