"""What is sent to the KV-cache service, when, and what becomes of it when nobody answers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from forebay.testing.waiting import until
from forebay.v1 import kvcache_pb2
from forebay.worker import kv_outbox
from forebay.worker.kv_outbox import KvOutbox

HASHES = [bytes([number]) * 16 for number in range(8)]


class FakeStub:
    """Answers, but for the first `unanswered` seals."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.sealed: dict[str, dict[int, bytes]] = {}
        self.unanswered = 0

    async def SealBlocks(self, request: kvcache_pb2.SealBlocksRequest, timeout: float) -> Any:  # noqa: ASYNC109
        self.calls.append(("seal", [entry.sequence_id for entry in request.entries]))
        if self.unanswered:
            self.unanswered -= 1
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())
        for entry in request.entries:
            blocks = self.sealed.setdefault(entry.sequence_id, {})
            assert entry.first_block_index <= len(blocks), "a gap"
            blocks.update(enumerate(entry.block_hashes, entry.first_block_index))
        return kvcache_pb2.SealBlocksResponse(results=[kvcache_pb2.SealResult() for _ in request.entries])

    async def ReleaseSequence(self, request: kvcache_pb2.ReleaseSequenceRequest, timeout: float) -> Any:  # noqa: ASYNC109
        self.calls.append(("release", [one.sequence_id for one in request.sequences]))
        return kvcache_pb2.ReleaseSequenceResponse()


@dataclass
class FakeAttachment:
    attachment_id: int = 1


@dataclass
class FakeLink:
    stub: FakeStub = field(default_factory=FakeStub)
    attachment: FakeAttachment = field(default_factory=FakeAttachment)
    owned_epochs: dict[str, int] = field(default_factory=lambda: {"a": 1, "b": 1})


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
async def outbox(link: FakeLink) -> AsyncIterator[KvOutbox]:
    outbox = KvOutbox(link)  # type: ignore[arg-type]
    outbox.start()
    yield outbox
    await outbox.close()


async def test_a_prompt_is_sealed_at_once(outbox: KvOutbox, link: FakeLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_outbox, "GATHER_S", 1e6)
    outbox.seal("a", 1, 0, HASHES[:2], at_once=True)

    await until(lambda: link.stub.calls == [("seal", ["a"])])


async def test_generated_blocks_wait_for_a_release_and_go_before_it(
    outbox: KvOutbox, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_outbox, "GATHER_S", 1e6)
    outbox.seal("a", 1, 0, HASHES[:1], at_once=False)
    outbox.seal("b", 1, 0, HASHES[1:2], at_once=False)
    await asyncio.sleep(0.01)
    assert link.stub.calls == []
    outbox.seal("a", 1, 1, HASHES[2:3], at_once=False)
    outbox.release("a", 1)

    await until(lambda: len(link.stub.calls) == 2)
    assert link.stub.calls == [("seal", ["a", "b"]), ("release", ["a"])]
    assert link.stub.sealed["a"] == {0: HASHES[0], 1: HASHES[2]}


async def test_generated_blocks_do_not_wait_for_ever(
    outbox: KvOutbox, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_outbox, "GATHER_S", 0.001)
    outbox.seal("a", 1, 0, HASHES[:1], at_once=False)

    await until(lambda: link.stub.sealed)


async def test_seals_that_nobody_answered_are_sent_again_without_a_gap(
    outbox: KvOutbox, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_outbox, "RETRY_INTERVAL_S", 0.01)
    link.stub.unanswered = 1
    outbox.seal("a", 1, 0, HASHES[:2], at_once=True)
    await until(lambda: link.stub.calls)
    outbox.seal("a", 1, 2, HASHES[2:3], at_once=True)
    outbox.release("a", 1)

    await until(lambda: link.stub.calls[-1][0] == "release")
    assert link.stub.sealed["a"] == dict(enumerate(HASHES[:3]))


@pytest.mark.parametrize("is_under_way", [False, True])
async def test_a_sequence_that_begins_anew_is_not_sealed_as_the_one_before(
    outbox: KvOutbox, link: FakeLink, monkeypatch: pytest.MonkeyPatch, is_under_way: bool
) -> None:
    monkeypatch.setattr(kv_outbox, "GATHER_S", 1e6)
    monkeypatch.setattr(kv_outbox, "RETRY_INTERVAL_S", 0.01)
    link.stub.unanswered = int(is_under_way)
    outbox.seal("a", 1, 3, HASHES[:2], at_once=is_under_way)
    await until(lambda: len(link.stub.calls) == int(is_under_way))
    outbox.seal("a", 2, 0, HASHES[2:3], at_once=True)

    await until(lambda: link.stub.sealed)
    assert link.stub.sealed["a"] == {0: HASHES[2]}


async def test_closing_sends_what_waits(link: FakeLink) -> None:
    outbox = KvOutbox(link)  # type: ignore[arg-type]
    outbox.start()
    outbox.seal("a", 1, 0, HASHES[:1], at_once=False)
    await outbox.close()

    assert link.stub.sealed
