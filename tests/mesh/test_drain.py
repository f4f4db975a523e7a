"""Workers of a mesh under load are drained by command and replaced: every answer comes, right, and nothing leaks."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from forebay.client import AsyncClient, Member
from forebay.errors import LastWorkerError, NotDrainableError, UnknownWorkerError
from forebay.mesh.process import open_pidfd
from forebay.testing.drain_rounds import DrainRound, drain_rounds
from forebay.testing.held_blocks import RELEASED_S, held_blocks
from forebay.testing.kill_rounds import TWO_OF_EACH
from forebay.testing.mesh import RunningMesh, running_mesh
from forebay.testing.steady_load import Verdict
from forebay.testing.waiting import eventually

PROMPT = list(range(1_000, 1_200))
MOST_TOKENS = 300


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh(**TWO_OF_EACH) as running:
        yield running


@pytest.fixture
def two_decode() -> Iterator[RunningMesh]:
    with running_mesh(decode_count=2) as running:
        yield running


@pytest.fixture
def one_decode() -> Iterator[RunningMesh]:
    with running_mesh() as running:
        yield running


def check(rounds: list[DrainRound]) -> None:
    outcomes = [outcome for one in rounds for outcome in one.outcomes]
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    assert verdicts[Verdict.WRONG] == verdicts[Verdict.HUNG] == verdicts[Verdict.FAILED] == 0, verdicts
    assert verdicts[Verdict.GOOD] > len(rounds)
    assert [one.held_blocks for one in rounds] == [0] * len(rounds)
    assert sum(outcome.recomputed_tokens for outcome in outcomes) == 0


async def test_every_worker_is_replaced_under_load(mesh: RunningMesh) -> None:
    async with drain_rounds(mesh, random.Random(11)) as draining:
        before = {one.name: one.process for one in draining.record.services}
        names = ["prefill-0", "decode-0", "decode-1", "prefill-1", "decode-0", "router-1", "tokenizer-0"]
        rounds = [await draining.run(name) for name in names]
        after = {one.name: one.process for one in draining.record.services}
    check(rounds)
    assert {name for name in before if before[name] != after[name]} == set(names)
    assert after.keys() == before.keys()
    assert [name for name in set(names) if open_pidfd(before[name]) is not None] == []


async def worker_of(client: AsyncClient, role: str) -> list[Member]:
    return [one for one in (await client.fleet()).members if one.role == role and not one.is_draining]


async def test_a_stream_moves_with_its_kv_and_the_last_worker_stays(two_decode: RunningMesh) -> None:
    async with AsyncClient(two_decode.router_address) as client:
        undisturbed = await client.generate(PROMPT, max_tokens=MOST_TOKENS, ignore_eos=True, temperature=0.0)
        stream = client.stream(PROMPT, max_tokens=MOST_TOKENS, ignore_eos=True, temperature=0.0)
        heard: list[int] = []
        drained: str | None = None
        async for chunk in stream:
            heard += chunk.token_ids
            if drained is None and len(heard) > 8:
                assert stream.plan is not None
                drained = stream.plan.decode_worker_id
                running = await client.drain(drained)
                assert running == 1
                assert await client.drain(drained) <= 1, "it may be told twice"
        assert tuple(heard) == undisturbed.token_ids
        assert stream.completion.failover_count == 1
        assert stream.completion.recomputed_tokens == 0

        async def has_left() -> bool:
            return drained not in {one.worker_id for one in (await client.fleet()).members}

        await eventually(has_left)
        assert drained is not None
        with pytest.raises(UnknownWorkerError):
            await client.drain(drained)
        for role in ("decode", "prefill"):
            (last,) = await worker_of(client, role)
            with pytest.raises(LastWorkerError):
                await client.drain(last.worker_id)
        for role in ("router", "tokenizer", "kvcache"):
            (service,) = await worker_of(client, role)
            with pytest.raises(NotDrainableError):
                await client.drain(service.worker_id, force=True)
        assert await held_blocks(two_decode.address_of("kvcache"), RELEASED_S) == 0


async def test_the_last_decode_worker_ends_what_it_runs_when_it_is_forced_to_go(one_decode: RunningMesh) -> None:
    async with AsyncClient(one_decode.router_address) as client:
        stream = client.stream(PROMPT, max_tokens=100, ignore_eos=True, temperature=0.0)
        is_told = False
        async for chunk in stream:
            if chunk.token_ids and not is_told:
                is_told = True
                (last,) = await worker_of(client, "decode")
                await client.drain(last.worker_id, force=True)
        assert len(stream.completion.token_ids) == 100
        assert stream.completion.failover_count == 0
        await eventually(lambda: _has_no(client, "decode"))


async def _has_no(client: AsyncClient, role: str) -> bool:
    return role not in {one.role for one in (await client.fleet()).members}
