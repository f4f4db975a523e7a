"""What a full fleet does with requests: they wait in their tier's order, are turned away, or run alone."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from forebay.errors import (
    DeadlineExceededError,
    NoWorkerError,
    QueueFullError,
    RequestCancelledError,
    SloUnattainableError,
    WorkerLostError,
)
from forebay.role import Role
from forebay.routing.admission import AdmissionLimits, Room
from forebay.routing.cost import ChipRates, ModelSize
from forebay.telemetry import spans
from forebay.testing.read_answer import ReadAnswer
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import FakeDecode, Script
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, router_pb2

LOCAL = common_pb2.EXECUTION_MODE_LOCAL
REALTIME, BATCH, BACKUP = common_pb2.QOS_TIER_REALTIME, common_pb2.QOS_TIER_BATCH, common_pb2.QOS_TIER_BACKUP
SIZE = ModelSize(parameters=1_000, weight_bytes=1_000, kv_token_bytes=64, layers=2, width=4)
RATES = ChipRates(step_overhead_s=0.0, flops_per_s=1e6, bytes_per_s=1e6, watts=10.0, usd_per_hour=3.6)


def asked(router, request_id: str, tier=REALTIME, timeout_s: float = 20.0, **fields) -> ReadAnswer:  # type: ignore[no-untyped-def]
    fields = {"text": "a prompt", "mode": LOCAL} | fields
    request = router_pb2.GenerateRequest(request_id=request_id, qos_tier=tier, **fields)
    return ReadAnswer(router.stub, request, timeout_s)


def begun(decode: FakeDecode) -> list[str]:
    """Request ids in the order in which the worker began them."""
    return [start.request_id.rpartition(".")[0] for start in decode.starts]


@asynccontextmanager
async def fleet_of_one_place(script: Script) -> AsyncIterator[ScriptedFleet]:
    async with ScriptedFleet(script, has_prefill=False) as fleet:
        fleet.members["decode-1"] = dataclasses.replace(fleet.members["decode-1"], max_sequences=1)
        yield fleet


@pytest.fixture
def script() -> Script:
    """Decode workers stop after the first token until `goes_on`."""
    return Script("hello", held_after=1)


async def test_requests_wait_for_room_and_realtime_goes_first(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with fleet_of_one_place(script) as fleet, router_for(fleet) as router:
        answers = [asked(router, "first")]
        await until(lambda: answers[0].token_text == "h")
        for number, (request_id, tier) in enumerate((("batch", BATCH), ("chat", REALTIME), ("chat-2", REALTIME)), 1):
            answers.append(asked(router, request_id, tier))
            await until(lambda count=number: router.gate.waiting_count == count)
        assert begun(fleet.decode) == ["first"]
        script.goes_on.set()
        for answer in answers:
            await answer.complete()
        await until(lambda: fleet.is_idle)
    assert begun(fleet.decode) == ["first", "chat", "chat-2", "batch"]
    assert all(answer.text == "hello" for answer in answers)
    assert answers[1].finished.timings.queue_s > answers[0].finished.timings.queue_s
    assert router.gate.waiting_count == 0


async def test_the_wait_has_a_span(router_for, script, exporter) -> None:  # type: ignore[no-untyped-def]
    async with fleet_of_one_place(script) as fleet, router_for(fleet) as router:
        first = asked(router, "first")
        await until(lambda: first.token_text == "h")
        second = asked(router, "second")
        await until(lambda: router.gate.waiting_count == 1)
        script.goes_on.set()
        await first.complete()
        await second.complete()
    assert [one.name for one in exporter.get_finished_spans()].count(spans.ADMIT) == 1


async def test_a_waiting_request_can_be_ended(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with fleet_of_one_place(script) as fleet, router_for(fleet) as router:
        first = asked(router, "first")
        await until(lambda: first.token_text == "h")
        cancelled, abandoned = asked(router, "cancelled"), asked(router, "abandoned")
        await until(lambda: router.gate.waiting_count == 2)
        await router.stub.Cancel(router_pb2.CancelRequest(request_id="cancelled"), timeout=5)
        with pytest.raises(RequestCancelledError):
            await cancelled.complete()
        abandoned.call.cancel()
        await until(lambda: router.gate.waiting_count == 0)
        script.goes_on.set()
        await first.complete()
        await until(lambda: fleet.is_idle)
        await asyncio.wait_for(asked(router, "next").complete(), 10)
    assert begun(fleet.decode) == ["first", "next"]


async def test_a_full_queue_turns_batch_away_first(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with (
        fleet_of_one_place(script) as fleet,
        router_for(fleet, admission_limits=AdmissionLimits(queue_length=1)) as router,
    ):
        first = asked(router, "first")
        await until(lambda: first.token_text == "h")
        batch = asked(router, "batch", BATCH)
        await until(lambda: router.gate.waiting_count == 1)
        chat = asked(router, "chat")
        with pytest.raises(QueueFullError, match="BATCH is turned away") as caught:
            await batch.complete()
        assert caught.value.retry_after_s
        with pytest.raises(QueueFullError, match="REALTIME is turned away"):
            await asked(router, "chat-2").complete()
        script.goes_on.set()
        await first.complete()
        await chat.complete()


async def test_what_waits_beyond_its_deadline_never_begins(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with fleet_of_one_place(script) as fleet, router_for(fleet) as router:
        first = asked(router, "first")
        await until(lambda: first.token_text == "h")
        late = asked(router, "late", BATCH, timeout_s=0.3)
        with pytest.raises(DeadlineExceededError):
            await late.complete()
        await until(lambda: router.gate.waiting_count == 0)
        script.goes_on.set()
        await first.complete()
    assert begun(fleet.decode) == ["first"]


async def test_where_there_is_no_worker_nobody_waits(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script, has_prefill=False) as fleet, router_for(fleet) as router:
        del fleet.members["decode-1"]
        router.links.update(fleet.members)
        for tier in (REALTIME, BATCH, BACKUP):
            with pytest.raises(NoWorkerError):
                await asked(router, "r", tier).complete()


async def test_backup_has_a_worker_to_itself(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script, has_prefill=False) as fleet, router_for(fleet) as router:
        backup = asked(router, "poison", BACKUP)
        await until(lambda: backup.token_text == "h")
        assert fleet.decode.starts[0].qos_tier == BACKUP
        chat = asked(router, "chat")
        await until(lambda: router.gate.waiting_count == 1)
        assert begun(fleet.decode) == ["poison"]
        script.goes_on.set()
        await backup.complete()
        await chat.complete()
    assert begun(fleet.decode) == ["poison", "chat"]


async def test_a_worker_is_emptied_for_backup_while_another_takes_the_work(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script, has_prefill=False) as fleet, router_for(fleet) as router:
        await fleet.add(Role.DECODE, "decode-2", second := FakeDecode(script))
        router.links.update(fleet.members)
        chats = [asked(router, f"chat-{number}") for number in range(8)]
        await until(lambda: all(chat.token_text == "h" for chat in chats))
        assert fleet.decode.starts
        assert second.starts
        backup = asked(router, "poison", BACKUP)
        await until(lambda: router.gate.waiting_count == 1)
        script.goes_on.set()
        for chat in chats:
            await chat.complete()
        await backup.complete()
    (start,) = [one for one in (*fleet.decode.starts, *second.starts) if one.qos_tier == BACKUP]
    assert start.request_id.startswith("poison")


async def test_a_request_that_killed_two_workers_is_tried_alone_and_then_given_up(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script, has_prefill=False) as fleet, router_for(fleet, failover_s=10) as router:
        decodes = {"decode-1": fleet.decode}
        for number in (2, 3, 4):
            decodes[f"decode-{number}"] = FakeDecode(script)
            await fleet.add(Role.DECODE, f"decode-{number}", decodes[f"decode-{number}"])
        router.links.update(fleet.members)
        poison = asked(router, "poison")
        for _ in range(3):
            await until(lambda: any(decode.running for decode in decodes.values()))
            victim = next(worker_id for worker_id, decode in decodes.items() if decode.running)
            await fleet.kill(victim)
            tried = decodes.pop(victim)
            assert len(tried.starts) == 1
            last_tier = tried.starts[0].qos_tier
        with pytest.raises(WorkerLostError, match="3 workers were lost"):
            await poison.complete()
        assert last_tier == BACKUP
        (spared,) = decodes.values()
        assert not spared.starts


@pytest.fixture
async def priced_router(router_for):  # type: ignore[no-untyped-def]
    """A router before one decode worker whose rates are known."""
    async with ScriptedFleet(Script("hello"), has_prefill=False) as fleet:
        fleet.members["decode-1"] = dataclasses.replace(fleet.members["decode-1"], model_size=SIZE, rates=RATES)
        async with router_for(fleet) as router:
            yield router


async def test_an_objective_that_nothing_meets_is_refused_with_the_best_there_is(priced_router) -> None:  # type: ignore[no-untyped-def]
    slo = common_pb2.ServiceLevelObjective(time_to_first_token_ms=1)
    with pytest.raises(SloUnattainableError) as caught:
        await asked(priced_router, "r", slo=slo).complete()
    assert caught.value.field == "slo"
    best_ms = int(caught.value.metadata["time_to_first_token_ms"])
    assert best_ms > 1
    await asked(
        priced_router, "r", slo=common_pb2.ServiceLevelObjective(time_to_first_token_ms=best_ms + 50)
    ).complete()


async def test_an_objective_that_nothing_meets_is_served_where_the_caller_accepts_that(priced_router) -> None:  # type: ignore[no-untyped-def]
    slo = common_pb2.ServiceLevelObjective(time_to_first_token_ms=1, accepts_miss=True)
    answer = asked(priced_router, "r", slo=slo)
    await answer.complete()
    assert answer.text == "hello"


async def test_refusals_say_nothing_of_how_long_places_are_held(priced_router) -> None:  # type: ignore[no-untyped-def]
    await asked(priced_router, "first").complete()
    full = Room(8, 8)
    before_s = priced_router.gate._admission.wait_s(7, full)
    for number in range(20):
        slo = common_pb2.ServiceLevelObjective(time_to_first_token_ms=1)
        with pytest.raises(SloUnattainableError):
            await asked(priced_router, f"r{number}", slo=slo).complete()
    assert priced_router.gate._admission.wait_s(7, full) == before_s


async def test_backup_gets_the_only_worker_though_others_keep_coming(router_for, script) -> None:  # type: ignore[no-untyped-def]
    script.goes_on.set()
    async with ScriptedFleet(script, has_prefill=False) as fleet, router_for(fleet) as router:
        is_over = False

        async def keep_coming(lane: int) -> None:
            number = 0
            while not is_over:
                number += 1
                await asked(router, f"chat-{lane}-{number}").complete()

        lanes = [asyncio.create_task(keep_coming(lane)) for lane in range(4)]
        await asked(router, "poison", BACKUP).complete()
        is_over = True
        await asyncio.gather(*lanes)
        await until(lambda: fleet.is_idle)
