"""Who makes room for whom when places or blocks are short."""

import dataclasses
from collections.abc import Callable
from itertools import groupby
from typing import Any

from forebay.rpc.status import from_failure
from forebay.testing.attached_worker import LIMITS
from forebay.testing.decode_rig import PROMPT, Rig, StepwiseEngine
from forebay.testing.fake_engine import continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2
from forebay.worker.block_supply import Patience

Start = Callable[..., Any]


async def test_when_all_are_stuck_the_youngest_makes_room_and_comes_back(start: Start) -> None:
    async with start(blocks=16, patience=Patience(stuck_s=0.3, blocks_s=60)) as rig:
        rig.worker.engine.gate.clear()
        for name in ("old", "young"):
            await rig.link.start(
                name, prompt_token_ids=[3], tenant=name, sampling=common_pb2.SamplingParams(max_tokens=60)
            )
            await until(lambda name=name: name in rig.worker.link.owned_epochs)
        rig.worker.engine.gate.set()
        assert (await rig.link.end_of("old")).tokens == continuation([3], 60)
        assert (await rig.link.end_of("young")).tokens == continuation([3], 60)
        await until(rig.kvcache.is_all_released)


async def test_one_that_is_stuck_alone_fails(start: Start) -> None:
    async with start(blocks=16, patience=Patience(stuck_s=0.1)) as rig:
        await rig.link.start(prompt_token_ids=[3], sampling=common_pb2.SamplingParams(max_tokens=80))
        heard = await rig.link.end_of()
        assert heard.last.error.reason == "KV_EXHAUSTED"
        assert heard.tokens == continuation([3], 80)[: len(heard.tokens)]
        await until(rig.kvcache.is_all_released)


async def test_batch_waits_behind_realtime(start: Start) -> None:
    realtime, batch = common_pb2.QOS_TIER_REALTIME, common_pb2.QOS_TIER_BATCH
    tiers = {"holder": realtime, "batch": batch, "realtime": realtime, "unsaid": common_pb2.QOS_TIER_UNSPECIFIED}
    async with start(limits=dataclasses.replace(LIMITS, max_sequences=1)) as rig:
        rig.worker.engine.gate.clear()
        for waiting, (request_id, qos_tier) in enumerate(tiers.items()):
            await rig.link.start(request_id, qos_tier=qos_tier)
            await until(lambda waiting=waiting: rig.worker.runner.queued_count == waiting)
            await until(lambda: rig.worker.runner.running_count == 1)
        rig.worker.engine.gate.set()
        for request_id in tiers:
            await rig.link.end_of(request_id)
        assert list(rig.link.heard) == ["holder", "realtime", "unsaid", "batch"]


async def test_realtime_pauses_batch_which_goes_on_where_it_was(start: Start) -> None:
    batch, limits = common_pb2.QOS_TIER_BATCH, dataclasses.replace(LIMITS, max_sequences=1)
    async with start(limits=limits, make_engine=StepwiseEngine) as rig:
        engine, runner = rig.worker.engines[0], rig.worker.runner
        engine.is_stepwise = True
        await rig.link.start("batch", qos_tier=batch, sampling=common_pb2.SamplingParams(max_tokens=60))
        await until(lambda: engine.gate.set() or "batch" in rig.link.heard)
        await rig.link.start("urgent", tenant="other")
        await until(lambda: len(runner.sequences) == 2 and all(one.is_in_engine for one in runner.sequences))
        assert (runner.running_count, runner.queued_count) == (1, 1)
        engine.is_stepwise = False
        engine.gate.set()
        assert (await rig.link.end_of("urgent")).tokens == continuation(PROMPT, 10)
        assert (await rig.link.end_of("batch")).tokens == continuation(PROMPT, 60)
        assert [names for names, _ in groupby(engine.batches)] == [{"batch"}, {"urgent"}, {"batch"}]
        assert engine.computed_tokens["batch"] == len(PROMPT) + 59, "nothing is computed twice"
        await until(rig.kvcache.is_all_released)


async def test_what_blocks_become_free_goes_to_the_urgent_and_the_last_makes_room(start: Start) -> None:
    """Each of four needs all blocks of the node in the end."""
    tiers = {"first": 2, "second": 2, "urgent": 1, "late": 1}
    async with start(blocks=16, patience=Patience(blocks_s=60, stuck_s=0.1)) as rig:
        for name, qos_tier in tiers.items():
            await rig.link.start(
                name,
                prompt_token_ids=[3],
                tenant=name,
                sampling=common_pb2.SamplingParams(max_tokens=60),
                qos_tier=qos_tier,
            )
            await until(lambda name=name: name in rig.link.heard or name in ids_on(rig))
        heard = {name: await rig.link.end_of(name) for name in tiers}
        assert heard["urgent"].tokens == continuation([3], 60)
        for name in ("first", "second", "late"):
            if heard[name].last.HasField("error"):
                failure = from_failure(heard[name].last.error)
                assert (failure.reason, failure.retry_after_s) == ("KV_EXHAUSTED", 1.0)
            else:
                assert heard[name].tokens == continuation([3], 60)
        await until(rig.kvcache.is_all_released)


def ids_on(rig: Rig) -> set[str]:
    return {one.sequence_id for one in rig.worker.runner.sequences}
