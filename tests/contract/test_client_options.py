"""From options to the fields of a request, and what no message can hold, against a scripted router."""

import math

import pytest

from forebay.client import (
    AsyncClient,
)
from forebay.errors import (
    InvalidFieldError,
    TokenOutOfRangeError,
)
from forebay.testing.fake_router import FakeRouter, Step, chunk, finished, serving, started
from forebay.v1 import common_pb2, router_pb2

ANSWER: list[Step] = [started(), chunk("Par", 1), chunk("", 2), chunk("is", 3), finished()]


async def test_every_option_reaches_its_field() -> None:
    router = FakeRouter(ANSWER)
    async with serving(router) as address, AsyncClient(address) as client:
        await client.generate(
            "x",
            max_tokens=9,
            temperature=0.5,
            top_p=0.25,
            top_k=4,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.75,
            seed=2**63,
            stop=["a", "b"],
            stop_token_ids=[3],
            logprobs=0,
            ignore_eos=True,
            model="m",
            qos_tier="batch",
            time_to_first_token_ms=100,
            time_per_output_token_ms=10,
            tenant="t",
            session="s",
            cache_salt="c",
            request_id="mine",
            mode="split",
            gather_ms=7,
        )
    sampling = common_pb2.SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=4,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        seed=2**63,
        stop=["a", "b"],
        stop_token_ids=[3],
        logprobs=0,
        ignore_eos=True,
    )
    assert router.requests[0] == router_pb2.GenerateRequest(
        text="x",
        sampling=sampling,
        model="m",
        qos_tier=common_pb2.QOS_TIER_BATCH,
        slo=common_pb2.ServiceLevelObjective(time_to_first_token_ms=100, time_per_output_token_ms=10),
        tenant="t",
        session="s",
        cache_salt="c",
        request_id="mine",
        mode=common_pb2.EXECUTION_MODE_SPLIT,
        gather_ms=7,
    )


async def test_a_whole_answer_may_come_in_few_messages_and_a_stream_comes_at_once() -> None:
    router = FakeRouter(ANSWER)
    async with serving(router) as address, AsyncClient(address) as client:
        await client.generate("x")
        await client.chat([{"role": "user", "content": "u"}])
        await client.stream("x").finish()
    assert [request.gather_ms for request in router.requests] == [1_000, 1_000, 0]


async def test_what_no_message_can_hold_is_refused_before_it_is_sent(free_address: str) -> None:
    client = AsyncClient(free_address)
    with pytest.raises(TokenOutOfRangeError):
        client.stream([-1])
    with pytest.raises(InvalidFieldError) as caught:
        client.stream("x", seed=-1)
    assert caught.value.field == "sampling.seed"
    assert caught.value.message == "seed must be a whole number in 0..18446744073709551615, not -1"
    with pytest.raises(InvalidFieldError) as caught:
        client.stream("x", mode="both")  # type: ignore[arg-type]
    assert caught.value.field == "mode"
    with pytest.raises(InvalidFieldError) as caught:
        client.stream("x", messages=[])
    assert caught.value.field == "input"
    for prompt, field in (("x" * 2**24, "text"), ([2**31] * 2**22, "tokens.token_ids")):
        with pytest.raises(InvalidFieldError) as caught:
            client.stream(prompt)
        assert caught.value.field == field
    with pytest.raises(TypeError, match="tempertaure"):
        client.stream("x", tempertaure=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tokens", 2**31, "max_tokens must be a whole number in 1..2147483647, not 2147483648"),
        ("top_k", 10**50, "top_k must be a whole number in 0..2147483647, not a value of type int"),
        ("max_tokens", 1.5, "max_tokens must be a whole number in 1..2147483647, not 1.5"),
        ("temperature", "hot", "temperature must be a finite number >= 0, not a value of type str"),
        ("ignore_eos", "yes", "ignore_eos must be true or false, not a value of type str"),
        ("stop_token_ids", 3, "stop_token_ids must be at most 64 token ids, whole numbers in 0..4294967295, not 3"),
        ("model", 7, "model must be a string of valid Unicode, not 7"),
        ("time_to_first_token_ms", -1, "time_to_first_token_ms must be a whole number in 1..4294967295, not -1"),
        ("timeout_s", 0, "timeout_s must be a number of seconds over 0 and at most 31622400, not 0"),
        ("timeout_s", math.nan, "timeout_s must be a number of seconds over 0 and at most 31622400, not nan"),
        ("timeout_s", math.inf, "timeout_s must be a number of seconds over 0 and at most 31622400, not inf"),
        (
            "timeout_s",
            "5",
            "timeout_s must be a number of seconds over 0 and at most 31622400, not a value of type str",
        ),
        ("gather_ms", -1, "gather_ms must be a whole number in 0..60000, not -1"),
        ("qos_tier", "soon", "qos_tier must be one of realtime, batch, backup, not a value of type str"),
    ],
)
async def test_a_wrong_option_is_told_what_it_may_be(free_address: str, name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        AsyncClient(free_address).stream("x", **{name: value})  # type: ignore[misc]
    assert caught.value.message == message
