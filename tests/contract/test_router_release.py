"""A cancel or a deadline, at any phase, leaves nothing of the request at any service within a second."""

import asyncio

import grpc
import pytest

from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import Script
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, router_pb2

FREED_WITHIN_S = 1.0


def held_in(phase: str) -> Script:
    """A script that goes no further than this phase."""
    script = Script("hello world", held_after=4 if phase in {"decode", "stop string"} else None)
    if phase == "tokenize":
        script.has_encoded.clear()
    if phase == "prefill":
        script.has_token.clear()
    if phase == "hand-over":
        script.has_manifest.clear()
    return script


def is_in(phase: str, fleet: ScriptedFleet) -> bool:
    """Whether a request has reached this phase."""
    match phase:
        case "tokenize":
            return fleet.tokenizer.encoding > 0
        case "prefill":
            return bool(fleet.prefill.running)
        case "hand-over":
            return bool(fleet.prefill.running and fleet.tokenizer.open_stream_ids)
        case _:
            return bool(fleet.decode.running and fleet.tokenizer.open_stream_ids)


LOCAL, SPLIT = common_pb2.EXECUTION_MODE_LOCAL, common_pb2.EXECUTION_MODE_SPLIT
PHASES = [(SPLIT, phase) for phase in ("tokenize", "prefill", "hand-over", "decode", "stop string")]
PHASES += [(LOCAL, phase) for phase in ("tokenize", "decode", "stop string")]


@pytest.mark.parametrize(("mode", "phase"), PHASES)
@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_everything_is_freed(router_for, mode, phase, how) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(held_in(phase)) as fleet, router_for(fleet) as router:
        sampling = common_pb2.SamplingParams(stop=["zzz"] if phase == "stop string" else [])
        request = router_pb2.GenerateRequest(text="prompt", mode=mode, sampling=sampling)
        call = router.stub.Generate(request, timeout=20 if how == "cancel" else 0.3)
        reading = asyncio.create_task(_read(call))
        await until(lambda: is_in(phase, fleet))
        if how == "cancel":
            call.cancel()
        code = await reading
        assert code is (grpc.StatusCode.CANCELLED if how == "cancel" else grpc.StatusCode.DEADLINE_EXCEEDED)
        await until(lambda: fleet.is_idle and not len(router.generations.running), FREED_WITHIN_S)


async def test_a_sequence_offered_at_the_moment_of_the_cancel_is_released(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(held_in("hand-over")) as fleet, router_for(fleet) as router:
        call = router.stub.Generate(router_pb2.GenerateRequest(request_id="r", text="prompt"), timeout=20)
        await until(lambda: is_in("hand-over", fleet))
        call.cancel()
        await until(lambda: not len(router.generations.running))
        fleet.script.has_manifest.set()
        await until(lambda: fleet.decode.cancels and fleet.is_idle, FREED_WITHIN_S)
        assert fleet.decode.cancels == [fleet.prefill.requests[0].request_id]
    assert [start.manifest.epoch for start in fleet.decode.starts] == [2], "taken over, then let go"


async def test_a_stop_string_in_the_first_token_releases_the_offer(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(held_in("hand-over")) as fleet, router_for(fleet) as router:
        request = router_pb2.GenerateRequest(text="p", sampling=common_pb2.SamplingParams(stop=["h"]))
        responses = [response async for response in router.stub.Generate(request, timeout=20)]
        assert responses[-1].finished.stop_match == "h"
        fleet.script.has_manifest.set()
        await until(lambda: fleet.decode.cancels and fleet.is_idle, FREED_WITHIN_S)


async def test_a_third_of_many_cancelled_at_random(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("the quick brown fox")) as fleet, router_for(fleet) as router:

        async def one(number: int) -> grpc.StatusCode:
            call = router.stub.Generate(router_pb2.GenerateRequest(text=f"prompt {number}"), timeout=20)
            if number % 3 == 0:
                for _ in range(number // 3 % 5):  # after as many messages, so at different phases
                    await call.read()
                call.cancel()
            return await _read(call)

        codes = await asyncio.gather(*(one(number) for number in range(60)))
        await until(lambda: fleet.is_idle and not len(router.generations.running), FREED_WITHIN_S)
    assert [code for number, code in enumerate(codes) if number % 3] == [grpc.StatusCode.OK] * 40


async def _read(call) -> grpc.StatusCode:  # type: ignore[no-untyped-def]
    try:
        async for _ in call:
            pass
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    return await call.code()
