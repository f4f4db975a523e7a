"""DrainWorker of a router, and what it does with a sequence that a draining worker hands on."""

import asyncio
import dataclasses
from typing import Any

import pytest

from forebay.errors import (
    DrainingError,
    LastWorkerError,
    NotDrainableError,
    UnknownWorkerError,
    WorkerLostError,
)
from forebay.role import Role
from forebay.rpc.status import to_failure, translated
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import FakeDecode, Script
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2, router_pb2

OUTPUT = "hello world"
HEARD = 3
EPOCH = 77


async def drain(router: Any, worker_id: str, *, force: bool = False) -> int:
    with translated():
        request = router_pb2.DrainWorkerRequest(worker_id=worker_id, force=force)
        response = await router.stub.DrainWorker(request, timeout=20)
    return int(response.running_sequences)


async def test_a_worker_of_two_is_told_and_may_be_told_again(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(fleet.script, fleet.prefill))
        router.links.update(fleet.members)
        assert await drain(router, "decode-1") == 3
        assert await drain(router, "decode-1") == 3
        assert fleet.told_to_drain == ["decode-1", "decode-1"]
        with pytest.raises(LastWorkerError):  # the fleet does not say yet that the other one leaves
            await drain(router, "decode-2")
        assert await drain(router, "decode-2", force=True) == 3


async def test_the_last_of_a_role_is_refused(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        for worker_id in ("prefill-1", "decode-1"):
            with pytest.raises(LastWorkerError) as refused:
                await drain(router, worker_id)
            assert refused.value.metadata["worker_id"] == worker_id
        assert fleet.told_to_drain == []


async def test_what_is_no_worker_and_what_is_unknown(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        for service in ("tokenizer-1", "kvcache-1"):
            with pytest.raises(NotDrainableError):
                await drain(router, service, force=True)
        with pytest.raises(UnknownWorkerError) as unknown:
            await drain(router, "nobody")
        assert unknown.value.field == "worker_id"


async def test_a_worker_that_does_not_answer_is_not_taken_for_draining(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(fleet.script, fleet.prefill))
        router.links.update(fleet.members)
        await fleet.kill("decode-1")
        with pytest.raises(WorkerLostError):
            await drain(router, "decode-1")
        assert await drain(router, "decode-2") == 3


class LeavingDecode(FakeDecode):
    """Hands every sequence on after some tokens, when the script goes on."""

    async def _say(self, start: decode_pb2.StartSequence, outputs: "asyncio.Queue[decode_pb2.SequenceOutput]") -> None:
        await self._script.goes_on.wait()
        self.running.discard(start.request_id)
        said = len(start.emitted_token_ids)
        token_ids = list(map(ord, OUTPUT[said:HEARD]))
        error = to_failure(DrainingError("the worker is draining"))
        outputs.put_nowait(
            decode_pb2.SequenceOutput(request_id=start.request_id, token_ids=token_ids, error=error, kv_epoch=EPOCH)
        )


async def test_a_sequence_that_was_handed_on_is_taken_over_with_its_epoch(router_for) -> None:  # type: ignore[no-untyped-def]
    fleet = ScriptedFleet(script := Script(OUTPUT))
    fleet.decode = LeavingDecode(script, fleet.prefill)
    script.goes_on.clear()
    async with fleet, router_for(fleet, failover_s=5) as router:
        request = router_pb2.GenerateRequest(text="a prompt", mode=common_pb2.EXECUTION_MODE_LOCAL)
        call = router.stub.Generate(request, timeout=20)
        await until(lambda: fleet.decode.starts)
        await fleet.add(Role.DECODE, "decode-2", second := FakeDecode(script, fleet.prefill))
        fleet.members["decode-1"] = dataclasses.replace(fleet.members["decode-1"], is_draining=True)
        router.links.update(fleet.members)
        script.goes_on.set()
        responses = [response async for response in call]
        assert "".join(response.chunk.text for response in responses) == OUTPUT
        (start,) = second.starts
        assert start.left_behind_epoch == EPOCH
        assert start.request_id == fleet.decode.starts[0].request_id
        assert "".join(map(chr, start.emitted_token_ids)) == OUTPUT[:HEARD]
        assert responses[-1].finished.failover_count == 1
