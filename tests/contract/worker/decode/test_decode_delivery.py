"""When tokens and ends are written, which load is told, and the span of a sequence."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from forebay.fleet.member import Load
from forebay.telemetry import spans
from forebay.testing.attached_worker import LIMITS
from forebay.testing.decode_rig import PROMPT, StepwiseEngine
from forebay.testing.fake_engine import POISON, continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2
from forebay.worker.service import load_of

Start = Callable[..., Any]


async def test_tokens_of_a_patient_request_come_in_two_messages_and_do_not_hold_up_others(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start("patient", gather_ms=60_000, sampling=common_pb2.SamplingParams(max_tokens=50))
        await rig.link.start("other", sampling=common_pb2.SamplingParams(max_tokens=50))
        await until(lambda: len(rig.worker.link.owned_epochs) == 2)
        rig.worker.engine.gate.set()
        patient, other = await rig.link.end_of("patient"), await rig.link.end_of("other")
        assert patient.tokens == other.tokens == continuation(PROMPT, 50)
        assert patient.messages == 2  # the first token, and all others with the end
        await until(rig.kvcache.is_all_released)


async def test_what_is_urgent_of_one_sequence_leaves_the_tokens_of_others_waiting(start: Start) -> None:
    limits = dataclasses.replace(LIMITS, lookahead_blocks=16)  # nobody is ever stuck
    async with start(gather_s=60, limits=limits, make_engine=StepwiseEngine) as rig:
        engine, heard = rig.worker.engine, rig.link.heard
        engine.is_stepwise = True
        engine.gate.clear()
        await rig.link.start("long", sampling=common_pb2.SamplingParams(max_tokens=50))
        await rig.link.start("short", sampling=common_pb2.SamplingParams(max_tokens=5))
        await until(lambda: len(rig.worker.link.owned_epochs) == 2)
        while "short" not in heard or heard["short"].last is None:
            engine.gate.set()
            await asyncio.sleep(0.02)  # a step, and its news
        assert heard["short"].tokens == continuation(PROMPT, 5)
        assert heard["long"].tokens == continuation(PROMPT, 1), "its later tokens keep their own time"
        engine.is_stepwise = False
        engine.gate.set()
        long = await rig.link.end_of("long")
        assert (long.tokens, long.messages) == (continuation(PROMPT, 50), 2)


async def test_the_load_is_told_as_it_changes(start: Start) -> None:
    async with start() as rig:
        told: list[Load] = []
        rig.worker.runner.on_change(lambda: told.append(load_of(rig.worker.runner)))
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        assert told[-1] == Load(running_sequences=1, queued_tokens=len(PROMPT), queued_realtime_tokens=len(PROMPT)), (
            "before its first step has ended"
        )
        rig.worker.engine.gate.set()
        await rig.link.end_of()
        await until(lambda: told[-1] == Load())


async def test_a_step_of_a_whole_batch_is_one_message(start: Start) -> None:
    async with start(blocks=256) as rig:
        rig.worker.engine.gate.clear()
        for number in range(8):
            await rig.link.start(f"s{number}", tenant=str(number), prompt_token_ids=[number + 1])
        await until(lambda: rig.worker.runner.running_count == 8)
        rig.worker.engine.gate.set()
        for number in range(8):
            assert (await rig.link.end_of(f"s{number}")).tokens == continuation([number + 1], 10)
        assert rig.link.messages <= rig.worker.engine.step_count
        await until(rig.kvcache.is_all_released)


async def test_each_sequence_is_one_span_under_its_request(start: Start, exporter: InMemorySpanExporter) -> None:
    async with start() as rig:
        trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        await rig.link.generate("good", traceparent=f"00-{trace_id}-{parent_id}-01")
        await rig.link.generate("bad", prompt_token_ids=[1, POISON], traceparent=f"00-{trace_id}-{parent_id}-01")
    found = {one.attributes[spans.REQUEST_ID]: one for one in exporter.get_finished_spans() if one.name == spans.DECODE}
    assert set(found) == {"good", "bad"}
    for span in found.values():
        assert f"{span.context.trace_id:032x}" == trace_id
        assert f"{span.parent.span_id:016x}" == parent_id
    assert found["good"].attributes[spans.OUTPUT_TOKENS] == 10
    assert found["good"].attributes[spans.COMPUTED_TOKENS] == len(PROMPT)
    assert found["good"].attributes[spans.DECODE_STEPS] == 9
    assert found["bad"].attributes[spans.ERROR_TYPE] == "NUMERIC_FAILURE"
