"""Cancels, deadlines and lost rights: what a sequence held is given up, and nothing else."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from forebay.errors import Code, DrainingError
from forebay.rpc.status import from_failure
from forebay.testing.attached_worker import LIMITS
from forebay.testing.decode_rig import PROMPT, Link
from forebay.testing.fake_engine import continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2
from forebay.worker.block_supply import Patience

Start = Callable[..., Any]


@pytest.mark.parametrize("phase", ["at_once", "queued", "acquiring", "computing", "offered", "decoding"])
@pytest.mark.parametrize("by", ["cancel", "stream"])
async def test_a_cancel_at_any_moment_frees_everything(start: Start, phase: str, by: str) -> None:
    limits = dataclasses.replace(LIMITS, max_sequences=1 if phase == "queued" else 8)
    async with start(blocks=128, limits=limits) as rig:
        fields: dict[str, Any] = {"sampling": common_pb2.SamplingParams(max_tokens=200)}
        if phase == "offered":
            fields = await rig.offer(**fields)
        if phase != "decoding":
            rig.worker.engine.gate.clear()
        if phase == "queued":
            await rig.link.start("other")
            await until(lambda: rig.worker.runner.running_count == 1)
        if phase == "acquiring":
            rig.kvcache.servicer.acquire_gate.clear()
        await rig.link.start(**fields)
        if phase not in ("at_once", "offered"):
            await until(lambda: len(rig.worker.runner.sequences) == (2 if phase == "queued" else 1))
        if phase == "decoding":
            await until(lambda: "r" in rig.link.heard)
        if by == "stream":
            rig.link.call.cancel()
        else:
            await rig.link.cancel()
            heard = await rig.link.end_of()
            assert heard.last.finish_reason == common_pb2.FINISH_REASON_CANCELLED
            emitted_before = 1 if phase == "offered" else 0
            assert heard.tokens == continuation(PROMPT, 200)[emitted_before:][: len(heard.tokens)]
        rig.kvcache.servicer.acquire_gate.set()
        rig.worker.engine.gate.set()
        await until(rig.kvcache.is_all_released)
        await until(lambda: not rig.worker.runner.sequences)


async def test_an_offer_cancelled_before_it_is_taken_is_released(start: Start) -> None:
    async with start() as rig:
        await rig.link.start(**await rig.offer())
        await rig.link.cancel()
        await rig.link.end_of()
        await until(rig.kvcache.is_all_released)


async def test_ending_the_commands_lets_sequences_finish(start: Start) -> None:
    async with start() as rig:
        await rig.link.start()
        await rig.link.call.done_writing()
        assert (await rig.link.end_of()).tokens == continuation(PROMPT, 10)
        await rig.link.task


async def test_a_passed_deadline_is_told(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        heard = await rig.link.generate(deadline_s=0.1)
        assert heard.last.error.reason == "DEADLINE_EXCEEDED"
        rig.worker.engine.gate.set()
        await until(rig.kvcache.is_all_released)


async def test_a_lost_sequence_stops_and_says_so(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        rig.worker.link.lose(["r"])
        heard = await rig.link.end_of()
        assert heard.last.error.reason == "WORKER_LOST"
        assert from_failure(heard.last.error).code is Code.UNAVAILABLE
        rig.worker.engine.gate.set()
        await until(lambda: not rig.worker.runner.sequences)
        assert heard.tokens == []


async def test_a_worker_attaches_again_and_serves(start_kvcache: Start, start: Start) -> None:
    async with start() as rig:
        await rig.link.generate("before")
        old_engine = rig.worker.engine
        await rig.kvcache.server.stop(0)
        async with start_kvcache(listen=rig.kvcache.address) as again:
            await until(lambda: rig.worker.engine is not old_engine)
            assert (await rig.link.generate("after")).tokens == continuation(PROMPT, 10)
            await until(again.is_all_released)


async def test_what_a_broken_attachment_lost_is_released_after_the_next(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        engine = rig.worker.engine
        rig.kvcache.node.end_attachments()
        assert (await rig.link.end_of()).last.error.reason == "WORKER_LOST"
        await until(lambda: rig.worker.engine is not engine)
        assert rig.kvcache.stats().sequences == 1  # the old step may still write
        engine.gate.set()
        await until(rig.kvcache.is_all_released)
        assert (await rig.link.generate("next")).tokens == continuation(PROMPT, 10)


async def test_what_a_step_may_still_write_is_named_however_long_that_takes(start: Start) -> None:
    async with start(lease_s=0.4) as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        engine, heartbeats = rig.worker.engine, rig.kvcache.servicer.heartbeats
        rig.kvcache.node.end_attachments()
        assert (await rig.link.end_of()).last.error.reason == "WORKER_LOST"
        await until(lambda: rig.worker.engine is not engine)
        heard = len(heartbeats)
        await until(lambda: len(heartbeats) > heard + 8)  # two leases
        assert rig.kvcache.stats().sequences == 1
        engine.gate.set()
        await until(rig.kvcache.is_all_released)


async def test_a_draining_worker_refuses_streams_and_sequences(start: Start) -> None:
    async with start() as rig:
        await rig.link.generate("before")
        rig.worker.runner.is_draining = True
        assert (await rig.link.generate("after")).last.error.reason == "DRAINING"
        with pytest.raises(DrainingError):
            await Link(rig.stub.Decode()).task


async def test_a_crowd_with_cancels_leaves_nothing(start: Start) -> None:
    async with start(blocks=200, patience=Patience(blocks_s=30, stuck_s=10)) as rig:
        prompts = {f"c{number}": [number % 7 + 1] * (number % 30 + 1) for number in range(90)}
        for number, (name, prompt) in enumerate(prompts.items()):
            await rig.link.start(name, prompt_token_ids=prompt)
            if number % 3 == 0:
                await rig.link.cancel(name)
        for number, (name, prompt) in enumerate(prompts.items()):
            heard = await rig.link.end_of(name)
            if number % 3:
                assert heard.tokens == continuation(prompt, 10)
            else:
                assert heard.tokens == continuation(prompt, len(heard.tokens))
        await until(rig.kvcache.is_all_released)
        assert rig.worker.runner.running_count == 0
        assert rig.worker.runner.queued_count == 0
