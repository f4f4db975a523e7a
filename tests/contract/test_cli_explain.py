"""`forebay explain` and the SDK's explanation, against a router that plays a script."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE

import pytest

from forebay.client import AsyncClient, ExecutionMode
from forebay.errors import UnknownRequestError
from forebay.testing.fake_router import FakeRouter, serving


async def explained(address: str, *arguments: str) -> tuple[int, str, str]:
    command = (sys.executable, "-m", "forebay.cli", "explain", "--target", address, *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, output.decode(), errors.decode()


async def test_the_sdk_reads_both_plans() -> None:
    async with serving(FakeRouter()) as address, AsyncClient(address) as client:
        explanation = await client.explain("r-1")
        with pytest.raises(UnknownRequestError):
            await client.explain("other")
    assert explanation.chosen.mode is ExecutionMode.SPLIT
    assert explanation.chosen.prediction is not None
    assert explanation.chosen.prediction.time_to_first_token_s == 0.25
    assert explanation.rejected is not None
    assert explanation.rejected.prediction is None


async def test_the_command_prints_sentences_or_json() -> None:
    async with serving(FakeRouter()) as address:
        code, output, _ = await explained(address, "r-1")
        _, as_json, _ = await explained(address, "r-1", "--json")
    assert code == 0
    assert output.splitlines() == [
        "chosen    a prefill worker is idle",
        "          first token 250.0 ms = queue 0.0 ms + prefill 200.0 ms + messages 50.0 ms",
        "          then 0.0 ms a token; 0 J, 0.5 USD in all",
        "rejected  a prefill worker is idle",
        "          without figures: no worker had told its rates",
    ]
    assert json.loads(as_json)["chosen"]["prediction"]["prefill_s"] == 0.2


async def test_a_request_that_is_not_known_is_told_in_one_line() -> None:
    async with serving(FakeRouter()) as address:
        code, output, errors = await explained(address, "other")
    assert (code, output) == (1, "")
    assert errors.startswith("forebay: no such request was planned (UNKNOWN_REQUEST")
