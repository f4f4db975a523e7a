"""Manifests, commands and sequences that are refused, alone or with their stream."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from forebay.errors import InvalidFieldError
from forebay.rpc.status import from_failure
from forebay.testing.attached_worker import attached_worker
from forebay.testing.decode_rig import PROMPT, Link
from forebay.testing.fake_engine import LAYOUT, POISON, continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2
from forebay.wire.layout import layout_to_proto
from forebay.worker.block_supply import Patience

Start = Callable[..., Any]


UNLIKE = layout_to_proto(dataclasses.replace(LAYOUT, head_dim=64))
MANIFEST_CASES = [
    ({"node_id": "elsewhere", "model_digest": "other"}, "MODEL_MISMATCH", "manifest.model_digest"),
    ({"node_id": "elsewhere", "layout": UNLIKE}, "LAYOUT_MISMATCH", "layout.head_dim"),
    ({"node_id": "elsewhere", "token_count": 23}, "INVALID_FIELD", "manifest.token_count"),
    ({"model_digest": "other"}, "MODEL_MISMATCH", "manifest.model_digest"),
    ({"token_count": 0}, "INVALID_FIELD", "manifest.token_count"),
    ({"token_count": 23}, "INVALID_FIELD", "manifest.token_count"),
    ({"sequence_id": "other"}, "INVALID_FIELD", "manifest.sequence_id"),
    ({"epoch": 1}, "WORKER_LOST", None),
]


@pytest.mark.parametrize(("changes", "reason", "field"), MANIFEST_CASES)
async def test_a_manifest_that_is_not_for_this_worker_is_refused(
    start: Start, changes: dict[str, Any], reason: str, field: str | None
) -> None:
    async with start() as rig:
        offer = await rig.offer()
        epoch = offer["manifest"].epoch
        offer["manifest"].MergeFrom(common_pb2.Manifest(**changes))
        if changes.get("token_count") == 0:
            offer["manifest"].token_count = 0
        heard = await rig.link.generate(**offer)
        assert heard.last.error.reason == reason
        assert heard.last.error.metadata.get("field") == field
        if "epoch" in changes or "node_id" in changes:
            rig.worker.rights.decline("r", epoch)
        await until(rig.kvcache.is_all_released)


@pytest.mark.parametrize("is_given_up", [True, False])
async def test_a_sequence_that_is_still_written_is_waited_for_a_moment(start: Start, is_given_up: bool) -> None:
    patience = Patience(writer_s=20 if is_given_up else 0.3)
    async with start(patience=patience) as rig, attached_worker(rig.kvcache.address) as other:
        offer = await rig.offer()
        offer["manifest"].epoch = (await other.rights.take_over("r", offer["manifest"].epoch, 0)).epoch
        asked = len(rig.kvcache.servicer.acquires)
        await rig.link.start(**offer)
        if is_given_up:
            await until(lambda: len(rig.kvcache.servicer.acquires) >= asked + 3)
            other.rights.release("r")
        heard = await rig.link.end_of()
        if is_given_up:
            assert heard.tokens == continuation(PROMPT, 10)[1:]
        else:
            failure = from_failure(heard.last.error)
            assert (failure.reason, failure.retry_after_s) == ("WORKER_LOST", 1.0)
            other.rights.release("r")
        await until(rig.kvcache.is_all_released)


async def test_a_request_whose_id_is_still_written_is_told_to_come_again(start: Start) -> None:
    async with start(patience=Patience(writer_s=0.3)) as rig:
        async with attached_worker(rig.kvcache.address) as other:
            await other.rights.acquire("r", [], 2)
        await until(lambda: rig.kvcache.stats().attachments == 1)
        assert (await rig.link.generate()).last.error.reason == "WORKER_LOST"
        assert rig.kvcache.stats().sequences == 1, "this process lives, and has not said that it stopped"


async def test_an_offer_that_ran_out_is_made_good_from_the_cache(start: Start) -> None:
    async with start() as rig:
        offer = await rig.offer()
        rig.worker.rights.decline("r", offer["manifest"].epoch)
        await until(rig.kvcache.is_all_released)
        heard = await rig.link.generate(**offer)
        assert heard.tokens == continuation(PROMPT, 10)[1:]
        sealed_tokens = len(offer["manifest"].block_hashes) * rig.worker.runner.limits.block_tokens
        assert heard.last.summary.computed_prompt_tokens == len(PROMPT) - sealed_tokens < len(PROMPT)
        await until(rig.kvcache.is_all_released)


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"request_id": "x" * 200}, "INVALID_FIELD", "request_id"),
        ({"prompt_token_ids": []}, "EMPTY_PROMPT", "prompt_token_ids"),
        ({"prompt_token_ids": [5, 4000]}, "TOKEN_OUT_OF_RANGE", "prompt_token_ids[1]"),
        ({"emitted_token_ids": [1000]}, "TOKEN_OUT_OF_RANGE", "emitted_token_ids[0]"),
        ({"prompt_token_ids": [5] * 300}, "CONTEXT_EXCEEDED", "prompt_token_ids"),
        ({"sampling": common_pb2.SamplingParams(top_p=0)}, "INVALID_FIELD", "sampling.top_p"),
        ({"deadline_s": 0.0}, "INVALID_FIELD", "deadline_s"),
        ({"prompt_token_ids": [1, POISON]}, "NUMERIC_FAILURE", None),
    ],
)
async def test_a_bad_sequence_fails_alone(
    start: Start, changes: dict[str, Any], reason: str, field: str | None
) -> None:
    async with start() as rig:
        await rig.link.start("good")
        bad = await rig.link.generate(**{"request_id": "bad"} | changes)
        assert bad.last.error.reason == reason
        assert bad.last.error.metadata.get("field") == field
        assert (await rig.link.end_of("good")).tokens == continuation(PROMPT, 10)
        await until(rig.kvcache.is_all_released)


async def test_an_empty_command_ends_the_stream(start: Start) -> None:
    async with start() as rig:
        await rig.link.call.write(decode_pb2.DecodeRequest())
        with pytest.raises(InvalidFieldError):
            await rig.link.task


async def test_the_same_id_twice_is_refused_and_the_first_goes_on(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await rig.link.start()
        heard = await rig.link.end_of()
        assert heard.last.error.reason == "DUPLICATE_REQUEST"
        other = Link(rig.stub.Decode())
        assert (await other.generate()).last.error.reason == "DUPLICATE_REQUEST"
        other.call.cancel()
        rig.worker.engine.gate.set()
        await until(rig.kvcache.is_all_released)
