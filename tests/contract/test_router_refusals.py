"""Every status code and reason a router answers with, and that it goes on serving after each."""

import math

import grpc
import pytest

from forebay.errors import (
    Code,
    ContextExceededError,
    DeadlineExceededError,
    DrainingError,
    DuplicateRequestError,
    EmptyPromptError,
    ForebayError,
    InvalidFieldError,
    KvExhaustedError,
    ModelMismatchError,
    NoWorkerError,
    NumericFailureError,
    QueueFullError,
    RequestCancelledError,
    TemplateFailedError,
    TokenOutOfRangeError,
    UnknownModelError,
    UnknownRequestError,
    UnknownRoleError,
    WorkerLostError,
)
from forebay.fleet.member import Member
from forebay.role import Role
from forebay.rpc.status import translated
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import DIGEST, LAYOUT, MODEL, Script
from forebay.testing.waiting import eventually, until
from forebay.v1 import common_pb2, router_pb2, tokenizer_pb2

Sampling = common_pb2.SamplingParams
SPLIT = common_pb2.EXECUTION_MODE_SPLIT


def chat(role: str, content: str) -> tokenizer_pb2.ChatMessages:
    return tokenizer_pb2.ChatMessages(messages=[tokenizer_pb2.ChatMessage(role=role, content=content)])


def tokens(*token_ids: int) -> router_pb2.TokenIds:
    return router_pb2.TokenIds(token_ids=token_ids)


def resume(*token_ids: int) -> router_pb2.ResumePoint:
    return router_pb2.ResumePoint(emitted_token_ids=token_ids)


BAD_REQUESTS = {
    "no input": ({}, InvalidFieldError, "input"),
    "empty text": ({"text": ""}, EmptyPromptError, "text"),
    "no token ids": ({"tokens": tokens()}, EmptyPromptError, "tokens.token_ids"),
    "no messages": ({"chat": tokenizer_pb2.ChatMessages()}, InvalidFieldError, "chat.messages"),
    "empty message": ({"chat": chat("user", "")}, EmptyPromptError, "chat"),
    "unknown role": ({"chat": chat("wizard", "x")}, UnknownRoleError, "chat.messages[0].role"),
    "template fails": ({"chat": chat("user", "break the template")}, TemplateFailedError, "chat.messages"),
    "token out of range": ({"tokens": tokens(1, 2, 128)}, TokenOutOfRangeError, "tokens.token_ids[2]"),
    "stop token out of range": (
        {"text": "x", "sampling": Sampling(stop_token_ids=[127, 128])},
        TokenOutOfRangeError,
        "sampling.stop_token_ids[1]",
    ),
    "prompt too long": ({"text": "x" * 64}, ContextExceededError, "text"),
    "more text than a message holds": ({"text": "x" * 2**22}, InvalidFieldError, "text"),
    "more chat than a message holds": ({"chat": chat("user", "x" * 2**22)}, InvalidFieldError, "chat"),
    "prompt and max_tokens too long": (
        {"text": "x" * 60, "sampling": Sampling(max_tokens=5)},
        ContextExceededError,
        "sampling.max_tokens",
    ),
    "unknown model": ({"text": "x", "model": "another"}, UnknownModelError, "model"),
    "temperature < 0": (
        {"text": "x", "sampling": Sampling(temperature=-0.1)},
        InvalidFieldError,
        "sampling.temperature",
    ),
    "temperature NaN": (
        {"text": "x", "sampling": Sampling(temperature=math.nan)},
        InvalidFieldError,
        "sampling.temperature",
    ),
    "max_tokens 0": ({"text": "x", "sampling": Sampling(max_tokens=0)}, InvalidFieldError, "sampling.max_tokens"),
    "max_tokens < 0": ({"text": "x", "sampling": Sampling(max_tokens=-1)}, InvalidFieldError, "sampling.max_tokens"),
    "top_p 0": ({"text": "x", "sampling": Sampling(top_p=0)}, InvalidFieldError, "sampling.top_p"),
    "empty stop": ({"text": "x", "sampling": Sampling(stop=["a", ""])}, InvalidFieldError, "sampling.stop[1]"),
    "logprobs 21": ({"text": "x", "sampling": Sampling(logprobs=21)}, InvalidFieldError, "sampling.logprobs"),
    "request id": ({"text": "x", "request_id": "a b"}, InvalidFieldError, "request_id"),
    "long request id": ({"text": "x", "request_id": "a" * 129}, InvalidFieldError, "request_id"),
    "long tenant": ({"text": "x", "tenant": "a" * 129}, InvalidFieldError, "tenant"),
    "long cache salt": ({"text": "x", "cache_salt": "a" * 129}, InvalidFieldError, "cache_salt"),
    "gather_ms 60001": ({"text": "x", "gather_ms": 60_001}, InvalidFieldError, "gather_ms"),
    "QoS tier": ({"text": "x", "qos_tier": 9}, InvalidFieldError, "qos_tier"),
    "SLO of BATCH": (
        {
            "text": "x",
            "qos_tier": common_pb2.QOS_TIER_BATCH,
            "slo": common_pb2.ServiceLevelObjective(time_to_first_token_ms=500),
        },
        InvalidFieldError,
        "slo",
    ),
    "SLO of no time": (
        {"text": "x", "slo": common_pb2.ServiceLevelObjective(time_per_output_token_ms=0)},
        InvalidFieldError,
        "slo.time_per_output_token_ms",
    ),
    "resumed without its id": (
        {"text": "x", "sampling": Sampling(seed=1), "resume": resume(5)},
        InvalidFieldError,
        "request_id",
    ),
    "resumed without its seed": (
        {"text": "x", "request_id": "r", "resume": resume(5)},
        InvalidFieldError,
        "sampling.seed",
    ),
    "resumed with text of no tokens": (
        {"text": "x", "resume": router_pb2.ResumePoint(text_characters=1)},
        InvalidFieldError,
        "resume.text_characters",
    ),
    "resumed with a token out of range": (
        {"text": "x", "request_id": "r", "sampling": Sampling(seed=1), "resume": resume(5, 128)},
        TokenOutOfRangeError,
        "resume.emitted_token_ids[1]",
    ),
    "resumed behind max_tokens": (
        {"text": "x", "request_id": "r", "sampling": Sampling(seed=1, max_tokens=1), "resume": resume(5, 6)},
        InvalidFieldError,
        "resume.emitted_token_ids",
    ),
    "resumed behind the context": (
        {"text": "x" * 60, "request_id": "r", "sampling": Sampling(seed=1), "resume": resume(*range(5, 10))},
        InvalidFieldError,
        "resume.emitted_token_ids",
    ),
    "begun by another model": (
        {"text": "x", "resume": router_pb2.ResumePoint(model_digest="another")},
        ModelMismatchError,
        "resume.model_digest",
    ),
    "mode RESUME": ({"text": "x", "mode": common_pb2.EXECUTION_MODE_RESUME}, InvalidFieldError, "mode"),
    "unknown mode": ({"text": "x", "mode": 17}, InvalidFieldError, "mode"),
}


async def refusal(router, **fields) -> ForebayError:  # type: ignore[no-untyped-def]
    with pytest.raises(ForebayError) as caught, translated():
        async for _ in router.stub.Generate(router_pb2.GenerateRequest(**fields), timeout=20):
            pass
    return caught.value


async def is_serving(router) -> bool:  # type: ignore[no-untyped-def]
    call = router.stub.Generate(router_pb2.GenerateRequest(text="still there?"), timeout=20)
    try:
        return [response async for response in call][-1].HasField("finished")
    except grpc.aio.AioRpcError:
        return False


async def test_bad_requests_are_refused_by_field(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        for name, (fields, kind, field) in BAD_REQUESTS.items():
            error = await refusal(router, **fields)
            assert (type(error), error.field) == (kind, field), name
        assert not fleet.prefill.requests
        assert not fleet.decode.starts
        assert await is_serving(router)


async def test_a_refusal_carries_the_numbers(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        error = await refusal(router, text="x" * 70)
    assert error.code is Code.INVALID_ARGUMENT
    assert (error.metadata["prompt_tokens"], error.metadata["context_tokens"]) == ("70", "64")


async def test_an_unknown_model_is_told_the_served_one(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        error = await refusal(router, text="x", model="another")
    assert error.metadata["served"] == MODEL
    assert MODEL in error.message


async def test_limits_themselves_are_allowed(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        request = router_pb2.GenerateRequest(
            request_id="a" * 128, tokens=tokens(*[127] * 60), sampling=Sampling(max_tokens=4, temperature=0)
        )
        responses = [response async for response in router.stub.Generate(request, timeout=20)]
    assert responses[-1].finished.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert responses[-1].finished.usage.completion_tokens == 4


@pytest.mark.parametrize("where", ["prefill_error", "decode_error"])
@pytest.mark.parametrize(
    "error",
    [
        KvExhaustedError("full", retry_after_s=0.5),
        QueueFullError("full", retry_after_s=0.5),
        NumericFailureError("NaN"),
        DeadlineExceededError("late"),
        DrainingError("leaving"),
    ],
    ids=lambda error: error.reason,
)
async def test_a_workers_error_reaches_the_caller_as_it_was(router_for, where, error) -> None:  # type: ignore[no-untyped-def]
    script = Script(**{where: error})
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        seen = await refusal(router, text="x")
        assert (type(seen), seen.message, seen.retry_after_s) == (type(error), error.message, error.retry_after_s)
        script.prefill_error = script.decode_error = None
        assert await is_serving(router)
        await until(lambda: fleet.is_idle)


@pytest.mark.parametrize("output", ["ab\x01", "ab\xff"], ids=["refused by the tokenizer", "not in the vocabulary"])
async def test_tokens_that_have_no_text_fail_their_request_alone(router_for, output) -> None:  # type: ignore[no-untyped-def]
    script = Script(output)
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        error = await refusal(router, text="x")
        assert error.code is Code.INTERNAL
        script.output = "fine"
        await eventually(lambda: is_serving(router))
        await until(lambda: fleet.is_idle)


async def test_a_tokenizer_that_breaks_the_contract_is_asked_again(router_for, caplog) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("ab\x02cd")) as fleet, router_for(fleet) as router:
        assert await is_serving(router)
        assert fleet.tokenizer.has_garbled
        await until(lambda: fleet.is_idle)
    assert any("make sense" in record.getMessage() for record in caplog.records)


async def test_a_running_id_is_refused_and_free_afterwards(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script(held_after=2)) as fleet, router_for(fleet) as router:
        running = router.stub.Generate(router_pb2.GenerateRequest(request_id="one", text="x"), timeout=20)
        await running.read()
        error = await refusal(router, request_id="one", text="x")
        assert (type(error), error.field) == (DuplicateRequestError, "request_id")
        running.cancel()
        await until(lambda: fleet.is_idle and not len(router.generations.running))
        fleet.script.held_after = None
        again = router.stub.Generate(router_pb2.GenerateRequest(request_id="one", text="x"), timeout=20)
        assert [response async for response in again][-1].HasField("finished")


async def test_no_worker(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(has_prefill=False) as fleet, router_for(fleet) as router:
        error = await refusal(router, text="x", mode=SPLIT)
        assert isinstance(error, NoWorkerError)
        assert (error.metadata["role"], error.retry_after_s) == ("prefill", 1.0)
        assert await is_serving(router), "LOCAL needs no prefill worker"
        del fleet.members["decode-1"]
        router.links.update(fleet.members)
        error = await refusal(router, text="x")
        assert isinstance(error, NoWorkerError)
        assert (error.metadata["role"], error.retry_after_s) == ("decode", 1.0)
        router.links.update({})
        error = await refusal(router, text="x")
        assert isinstance(error, NoWorkerError)
        assert error.metadata["role"] == "tokenizer"


async def test_workers_of_another_model_or_layout_get_nothing(router_for, caplog) -> None:  # type: ignore[no-untyped-def]
    other_layout = type(LAYOUT)(dtype=LAYOUT.dtype, layers=9, kv_heads=1, head_dim=4, block_tokens=4)
    strangers = {
        "decode-x": Member("decode-x", Role.DECODE, "127.0.0.1:1", "node", model_digest="other", layout=LAYOUT),
        "decode-y": Member("decode-y", Role.DECODE, "127.0.0.1:1", "node", model_digest=DIGEST, layout=other_layout),
    }
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        fleet.members |= strangers
        router.links.update(fleet.members)
        router.links.update(fleet.members)
        assert [worker.worker_id for worker in router.links.snapshot.decode] == ["decode-1"]
        assert await is_serving(router)
    warnings = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert len(warnings) == 2, "said once of each"
    assert any("model digest" in text for text in warnings)
    assert any("KV layout" in text for text in warnings)


async def test_a_lost_prefill_worker(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script()
    script.has_token.clear()
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = router.stub.Generate(router_pb2.GenerateRequest(text="x"), timeout=20)
        await until(lambda: fleet.prefill.running)
        await fleet.kill("prefill-1")
        with pytest.raises(WorkerLostError) as caught, translated():
            async for _ in call:
                pass
    assert caught.value.metadata["worker_id"] == "prefill-1"
    assert caught.value.retry_after_s == 1.0


async def test_a_lost_decode_worker_fails_its_requests_and_is_used_again(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script(held_after=2)) as fleet, router_for(fleet) as router:
        calls = [router.stub.Generate(router_pb2.GenerateRequest(text="x"), timeout=20) for _ in range(3)]
        await until(lambda: len(fleet.decode.running) == 3)
        await fleet.kill("decode-1")
        for call in calls:
            with pytest.raises(WorkerLostError) as caught, translated():
                async for _ in call:
                    pass
            assert caught.value.metadata["worker_id"] == "decode-1"
        assert isinstance(await refusal(router, text="x"), NoWorkerError), "a broken link is not planned on"
        fleet.script.held_after = None
        await fleet.add(Role.DECODE, "decode-1", fleet.decode, listen=fleet.members["decode-1"].address)
        await until(lambda: router.links.snapshot.decode)
        assert await is_serving(router)


async def test_cancel_from_elsewhere(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script(held_after=2)) as fleet, router_for(fleet) as router:
        with pytest.raises(UnknownRequestError) as unknown, translated():
            await router.stub.Cancel(router_pb2.CancelRequest(request_id="r"))
        assert unknown.value.field == "request_id"
        call = router.stub.Generate(router_pb2.GenerateRequest(request_id="r", text="x"), timeout=20)
        await until(lambda: fleet.decode.running)
        await router.stub.Cancel(router_pb2.CancelRequest(request_id="r"))
        with pytest.raises(RequestCancelledError) as caught, translated():
            async for _ in call:
                pass
        assert caught.value.code is Code.CANCELLED
        await until(lambda: fleet.is_idle, timeout_s=1)
