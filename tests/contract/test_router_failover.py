"""A request whose worker fails goes on with another: the same tokens, each once."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from forebay.errors import (
    ForebayError,
    KvExhaustedError,
    NotAttachedError,
    NoWorkerError,
    RequestCancelledError,
    WorkerLostError,
)
from forebay.role import Role
from forebay.routing.breaker import LEAST_FAILURES
from forebay.telemetry import spans
from forebay.testing.read_answer import ReadAnswer
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import FakeDecode, FakePrefill, Script
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, router_pb2

SPLIT, LOCAL = common_pb2.EXECUTION_MODE_SPLIT, common_pb2.EXECUTION_MODE_LOCAL
OUTPUT = "hello world"


def answer_of(router, **fields) -> ReadAnswer:  # type: ignore[no-untyped-def]
    """A call that is read while the fleet changes."""
    return ReadAnswer(router.stub, router_pb2.GenerateRequest(**({"text": "a prompt"} | fields)))


@pytest.fixture
def script() -> Script:
    """Decode workers stop after five tokens until `goes_on`."""
    return Script(OUTPUT, held_after=5)


async def test_another_decode_worker_goes_on_behind_the_tokens_there_are(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        answer = answer_of(router, mode=LOCAL, sampling=common_pb2.SamplingParams(logprobs=0, temperature=1))
        await until(lambda: answer.token_text == OUTPUT[:5])
        await fleet.add(Role.DECODE, "decode-2", second := FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        script.goes_on.set()
        await fleet.kill("decode-1")
        await answer.complete()
        await until(lambda: fleet.is_idle and not second.running)
    (start,) = second.starts
    heard = OUTPUT[: len(start.emitted_token_ids)]
    assert len(heard) >= 5
    assert "".join(map(chr, start.emitted_token_ids)) == heard
    assert not start.HasField("left_behind_epoch"), "the lost worker told no epoch"
    assert start.sampling == fleet.decode.starts[0].sampling, "the same seed"
    assert start.request_id != fleet.decode.starts[0].request_id, "no two attempts share a name"
    assert (answer.text, answer.token_text) == (OUTPUT, OUTPUT)
    assert answer.finished.failover_count == 1
    assert answer.finished.usage.completion_tokens == len(OUTPUT)


async def test_another_prefill_worker_computes_the_prompt(router_for, script) -> None:  # type: ignore[no-untyped-def]
    script.has_token.clear()
    script.held_after = None
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        answer = answer_of(router, mode=SPLIT)
        await until(lambda: fleet.prefill.running)
        await fleet.add(Role.PREFILL, "prefill-2", second := FakePrefill(script))
        router.links.update(fleet.members)
        await fleet.kill("prefill-1")
        await until(lambda: second.running)
        script.has_token.set()
        await answer.complete()
    assert answer.text == OUTPUT
    assert len(second.requests) == 1
    assert answer.finished.failover_count >= 1


async def test_a_prefill_worker_that_cannot_be_reached_is_not_planned(router_for, script) -> None:  # type: ignore[no-untyped-def]
    script.held_after = None
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        await answer_of(router, mode=SPLIT).complete()
        await fleet.kill("prefill-1")
        await until(lambda: not router.links.snapshot.prefill)
        answer = answer_of(router)
        await answer.complete()
        assert answer.started.plan.mode == LOCAL
        await fleet.add(Role.PREFILL, "prefill-1", fleet.prefill, listen=fleet.members["prefill-1"].address)
        await until(lambda: router.links.snapshot.prefill)


async def test_it_waits_for_a_worker_to_come(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=10) as router:
        answer = answer_of(router, mode=LOCAL)
        await until(lambda: answer.token_text == OUTPUT[:5])
        await fleet.kill("decode-1")
        await until(lambda: not router.links.snapshot.decode)
        script.goes_on.set()
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        await answer.complete()
    assert answer.text == OUTPUT


async def test_a_new_request_waits_where_a_worker_was_lost_just_now(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=10) as router:
        script.goes_on.set()
        await fleet.kill("decode-1")
        await until(lambda: not router.links.snapshot.decode)
        answer = answer_of(router, mode=LOCAL)
        await until(lambda: len(router.generations.running))
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        await answer.complete()
    assert answer.text == OUTPUT


async def test_a_span_tells_what_failed_and_who_goes_on(router_for, script, exporter) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        answer = answer_of(router, mode=LOCAL)
        await until(lambda: answer.token_text == OUTPUT[:5])
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        script.goes_on.set()
        await fleet.kill("decode-1")
        await answer.complete()
    made = exporter.get_finished_spans()
    (failover,) = (one for one in made if one.name == spans.FAILOVER)
    assert failover.attributes[spans.LOST_WORKER_ID] == "decode-1"
    assert failover.attributes[spans.ERROR_TYPE] == "WORKER_LOST"
    assert 5 <= failover.attributes[spans.OUTPUT_TOKENS] < len(OUTPUT)
    below = [one for one in made if one.parent is not None and one.parent.span_id == failover.context.span_id]
    assert [one.name for one in below] == [spans.PLAN]
    assert below[0].attributes[spans.DECODE_WORKER_ID] == "decode-2"
    assert "going on where another worker stopped" in below[0].attributes[spans.PLAN_REASON]


@pytest.mark.parametrize(("mode", "told_epoch", "epoch"), [(SPLIT, 7, 7), (SPLIT, 0, 2), (LOCAL, 7, 7)])
async def test_another_worker_of_the_node_takes_over_what_a_lost_one_left(
    router_for, script, mode, told_epoch, epoch
) -> None:  # type: ignore[no-untyped-def]
    script.kv_epoch = told_epoch
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        answer = answer_of(router, mode=mode)
        await until(lambda: answer.token_text == OUTPUT[:5])
        await fleet.add(Role.DECODE, "decode-2", second := FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        script.goes_on.set()
        await fleet.kill("decode-1")
        await answer.complete()
        await until(lambda: fleet.is_idle and not second.running)
    (start,) = second.starts
    assert (start.left_behind_epoch, start.HasField("manifest")) == (epoch, False), "or that of the manifest"
    assert start.request_id == fleet.decode.starts[0].request_id, "the sequence that lies in memory"
    assert (answer.text, answer.token_text) == (OUTPUT, OUTPUT)
    assert answer.finished.failover_count == 1


async def test_what_a_lost_worker_left_and_cannot_be_had_is_computed(router_for, script) -> None:  # type: ignore[no-untyped-def]
    script.kv_epoch, script.left_behind_error = 7, WorkerLostError("it has run out")
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        answer = answer_of(router, mode=LOCAL)
        await until(lambda: answer.token_text == OUTPUT[:5])
        await fleet.add(Role.DECODE, "decode-2", second := FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        script.goes_on.set()
        await fleet.kill("decode-1")
        await answer.complete()
        await until(lambda: fleet.is_idle and not second.running)
    taking_over, computing = second.starts
    assert taking_over.HasField("left_behind_epoch")
    assert not computing.HasField("left_behind_epoch")
    assert computing.request_id != taking_over.request_id
    assert (answer.text, answer.token_text) == (OUTPUT, OUTPUT)


async def test_what_another_worker_would_say_too_is_no_failover(router_for, exporter) -> None:  # type: ignore[no-untyped-def]
    script = Script(OUTPUT, prefill_error=KvExhaustedError("full"))
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        with pytest.raises(KvExhaustedError):
            await answer_of(router, mode=SPLIT).complete()
    assert len(fleet.prefill.requests) == 1
    assert not [one for one in exporter.get_finished_spans() if one.name == spans.FAILOVER]


async def test_when_none_comes_the_caller_hears_what_is_missing(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=0.3) as router:
        answer = answer_of(router, mode=LOCAL)
        await until(lambda: answer.token_text == OUTPUT[:5])
        await fleet.kill("decode-1")
        with pytest.raises(NoWorkerError) as caught:
            await answer.complete()
        assert caught.value.retry_after_s
        await until(lambda: not len(router.generations.running) and not fleet.tokenizer.open_stream_ids)
    assert answer.text == OUTPUT[:5]


async def test_last_words_of_a_worker_count_once(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script(OUTPUT, decode_error=WorkerLostError("its blocks are gone"), last_words=OUTPUT[:3])
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        answer = answer_of(router, mode=LOCAL)
        await until(lambda: len(fleet.decode.starts) > 1)  # then the first has said its last words
        script.decode_error = None
        await answer.complete()
    assert [list(map(chr, start.emitted_token_ids)) for start in fleet.decode.starts[:2]] == [[], list(OUTPUT[:3])]
    assert (answer.text, answer.token_text) == (OUTPUT, OUTPUT)


async def test_a_request_that_ends_its_workers_is_ended(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=10) as router:
        answer, workers = answer_of(router, mode=LOCAL), {"decode-1": fleet.decode}
        for number in (2, 3, 4):
            last = f"decode-{number - 1}"
            await until(lambda worker=workers[last]: worker.running)  # type: ignore[misc]
            workers[f"decode-{number}"] = FakeDecode(script, fleet.prefill)
            await fleet.add(Role.DECODE, f"decode-{number}", workers[f"decode-{number}"])
            router.links.update(fleet.members)
            await fleet.kill(last)
        with pytest.raises(WorkerLostError, match="3 workers were lost with this request"):
            await answer.complete()
    assert not workers["decode-4"].starts, "the fourth lives"


async def cancelled_by_its_caller(router, answer: ReadAnswer) -> None:  # type: ignore[no-untyped-def]
    answer.call.cancel()


async def cancelled_by_id(router, answer: ReadAnswer) -> None:  # type: ignore[no-untyped-def]
    await router.stub.Cancel(router_pb2.CancelRequest(request_id="r"))


@pytest.mark.parametrize("cancel", [cancelled_by_its_caller, cancelled_by_id])
async def test_a_cancel_ends_the_waiting(
    router_for: Callable[..., object],
    script: Script,
    cancel: Callable[[object, ReadAnswer], Awaitable[None]],
) -> None:
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=60) as router:  # type: ignore[attr-defined]
        answer = answer_of(router, request_id="r", mode=LOCAL)
        await until(lambda: answer.token_text == OUTPUT[:5])
        await fleet.kill("decode-1")
        await until(lambda: not router.links.snapshot.decode)
        await cancel(router, answer)
        with pytest.raises((RequestCancelledError, ForebayError, asyncio.CancelledError)):
            await answer.complete()
        await until(lambda: not len(router.generations.running) and not fleet.tokenizer.open_stream_ids, timeout_s=1)


async def test_a_stop_string_may_lie_across_the_failure(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=5) as router:
        answer = answer_of(router, mode=LOCAL, sampling=common_pb2.SamplingParams(stop=["o w"]))
        await until(lambda: fleet.tokenizer.open_stream_ids and len(answer.text) >= 3)
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        script.goes_on.set()
        await fleet.kill("decode-1")
        await answer.complete()
    assert answer.text == "hell"
    assert answer.finished.stop_match == "o w"


async def test_a_worker_that_fails_one_request_after_another_gets_only_probes_until_it_works(router_for) -> None:  # type: ignore[no-untyped-def]
    """It answers health, and keeps its streams open."""
    ill, well = Script(OUTPUT, decode_error=NotAttachedError("it lost its memory")), Script(OUTPUT)
    async with ScriptedFleet(ill, has_prefill=False) as fleet, router_for(fleet, failover_s=5) as router:
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(well, fleet.prefill))
        router.links.update(fleet.members)
        while len(fleet.decode.starts) < LEAST_FAILURES:
            answer = answer_of(router)
            await answer.complete()
            assert answer.text == OUTPUT
        assert router.health.shut == {"decode-1"}
        assert [one.worker_id for one in router.links.snapshot.decode] == ["decode-2"]
        ill.decode_error = None
        await until(lambda: not router.health.shut)
        while len(fleet.decode.starts) == LEAST_FAILURES:
            await answer_of(router).complete()
        assert router.health.shut == frozenset()


async def test_of_workers_that_all_fail_none_is_kept_from_work(router_for) -> None:  # type: ignore[no-untyped-def]
    ill = Script(OUTPUT, decode_error=NotAttachedError("it lost its memory"))
    async with ScriptedFleet(ill, has_prefill=False) as fleet, router_for(fleet) as router:
        for _ in range(LEAST_FAILURES):
            with pytest.raises(NotAttachedError):
                await answer_of(router).complete()
        assert router.health.shut == {"decode-1"}
        ill.decode_error = None
        answer = answer_of(router)
        await answer.complete()
        assert answer.text == OUTPUT
        assert router.health.shut == frozenset()
