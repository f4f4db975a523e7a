"""What a pull's messages may be, told by one who speaks the protocol by hand: refusals, protobuf, tickets."""

import asyncio
from typing import Any

import pytest

from forebay.errors import InvalidFieldError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.pull_frame import MAX_CREDIT_BYTES
from forebay.kvcache.transfer.source import METHOD
from forebay.rpc.status import translated
from forebay.testing.kv_worker import numbered_hashes as hashes
from forebay.testing.plain_blocks import random_block
from forebay.v1 import common_pb2, pull_pb2
from forebay.wire.layout import layout_to_proto

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=12, kv_heads=3, head_dim=64, block_tokens=32)  # 294,912 bytes


def opening(**changes: object) -> pull_pb2.PullOpening:
    fields: dict[str, object] = {
        "block_hashes": hashes(2), "layout": layout_to_proto(LAYOUT), "credit_bytes": 1000,
    } | changes  # fmt: skip
    return pull_pb2.PullOpening(**fields)  # type: ignore[arg-type]


async def ask(ends: Any, *requests: pull_pb2.PullBlocksRequest, timeout_s: float | None = 20) -> list[bytes]:
    call = ends.channel.stream_stream(METHOD, request_serializer=pull_pb2.PullBlocksRequest.SerializeToString)(
        iter(requests), timeout=timeout_s
    )
    with translated():
        return [message async for message in call]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"block_hashes": []}, "opening.block_hashes"),
        ({"block_hashes": [b"short"]}, "opening.block_hashes"),
        ({"block_hashes": hashes(65_537)}, "opening.block_hashes"),
        ({"first_block_index": 2}, "opening.first_block_index"),
        ({"credit_bytes": 0}, "credit_bytes"),
        ({"credit_bytes": 2**64 - 5}, "credit_bytes"),  # a negative number of another language
        ({"credit_bytes": MAX_CREDIT_BYTES + 1}, "credit_bytes"),
        ({"seal_wait_s": -1.0}, "opening.seal_wait_s"),
        ({"seal_wait_s": float("nan")}, "opening.seal_wait_s"),
        ({"sequence_id": "x" * 300}, "opening.sequence_id"),
        ({"layout": common_pb2.KvLayout()}, "layout.dtype"),
    ],
)
async def test_bad_openings_are_refused(ends: Any, changes: dict[str, object], field: str) -> None:
    ends.seal(2)
    with pytest.raises(InvalidFieldError) as refused:
        await ask(ends, pull_pb2.PullBlocksRequest(opening=opening(**changes)))
    assert refused.value.field == field
    assert ends.blocks.references == 0


async def test_bad_later_requests_end_the_pull(ends: Any) -> None:
    ends.seal(2)
    good = pull_pb2.PullBlocksRequest(opening=opening())
    for later in (
        good,
        pull_pb2.PullBlocksRequest(grant=pull_pb2.PullGrant()),
        pull_pb2.PullBlocksRequest(grant=pull_pb2.PullGrant(credit_bytes=2**64 - 1)),
        pull_pb2.PullBlocksRequest(grant=pull_pb2.PullGrant(repeat_block_indexes=[1])),
    ):
        with pytest.raises(InvalidFieldError):
            await ask(ends, good, later)
    for none_first in ((), (pull_pb2.PullBlocksRequest(grant=pull_pb2.PullGrant(credit_bytes=1)),)):
        with pytest.raises(InvalidFieldError):
            await ask(ends, *none_first)
    await ends.all_given_back()


@pytest.mark.parametrize("timeout_s", [None, 7200])
async def test_a_pull_without_a_near_deadline_is_refused(ends: Any, timeout_s: float | None) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        await ask(ends, pull_pb2.PullBlocksRequest(opening=opening()), timeout_s=timeout_s)
    assert refused.value.field == "deadline"


async def test_messages_are_protobuf_for_everybody_else(ends: Any) -> None:
    ends.seal(1)
    request = opening(block_hashes=hashes(1), credit_bytes=2 * LAYOUT.block_bytes)
    messages = []
    call = ends.channel.stream_stream(
        METHOD,
        request_serializer=pull_pb2.PullBlocksRequest.SerializeToString,
        response_deserializer=pull_pb2.PullBlocksResponse.FromString,
    )(timeout=20)
    await call.write(pull_pb2.PullBlocksRequest(opening=request))
    messages.append(await call.read())
    await call.done_writing()
    assert messages[0].frame.data == random_block(hashes(1)[0], LAYOUT.block_bytes)
    assert len(messages[0].frame.block_digest) == 16
    assert (await call.code()).name == "OK"


async def stranger(port: int, ticket: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(ticket)
    read = await reader.read()
    writer.close()
    return read


async def test_a_ticket_is_good_once_and_as_long_as_its_pull(ends: Any) -> None:
    ends.seal(1)
    call = ends.channel.stream_stream(
        METHOD,
        request_serializer=pull_pb2.PullBlocksRequest.SerializeToString,
        response_deserializer=pull_pb2.PullBlocksResponse.FromString,
    )(timeout=20)
    wanted = opening(block_hashes=hashes(1), credit_bytes=2 * LAYOUT.block_bytes, wants_data_connection=True)
    await call.write(pull_pb2.PullBlocksRequest(opening=wanted))
    offer = (await call.read()).data_connection
    assert await stranger(offer.port, bytes(32)) == b""
    taken = asyncio.create_task(stranger(offer.port, offer.ticket))
    assert len(offer.ticket) == 32
    reading = asyncio.create_task(stranger(offer.port, offer.ticket))
    done, _ = await asyncio.wait((taken, reading), return_when=asyncio.FIRST_COMPLETED)
    assert [one.result() for one in done] == [b""]  # the second to come
    call.cancel()
    both = [len(await taken), len(await reading)]
    assert sorted(both) == [0, 32 + LAYOUT.block_bytes]
    await ends.all_given_back()
    assert await stranger(offer.port, offer.ticket) == b""
