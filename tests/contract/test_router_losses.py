"""Workers that leave in good order or without a word, ids used again, limits: every request ends, with the truth."""

import dataclasses

import pytest

from forebay.errors import DeadlineExceededError, ForebayError, WorkerLostError
from forebay.role import Role
from forebay.router.decode_link import DecodeLink
from forebay.rpc.channel import open_channel
from forebay.rpc.status import translated
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import FakeDecode, FakeTokenizer, Script
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2, router_pb2

SPLIT, LOCAL = common_pb2.EXECUTION_MODE_SPLIT, common_pb2.EXECUTION_MODE_LOCAL


def generate(router, **fields):  # type: ignore[no-untyped-def]
    fields = {"text": "a prompt"} | fields
    return router.stub.Generate(router_pb2.GenerateRequest(**fields), timeout=20)


async def text_of(call) -> str:  # type: ignore[no-untyped-def]
    responses = [response async for response in call]
    assert responses[-1].HasField("finished")
    return "".join(response.chunk.text for response in responses)


async def failure_of(call) -> ForebayError:  # type: ignore[no-untyped-def]
    with pytest.raises(ForebayError) as caught, translated():
        async for _ in call:
            pass
    return caught.value


def leave(fleet: ScriptedFleet, router, worker_id: str) -> None:  # type: ignore[no-untyped-def]
    """The worker drains, then its record goes: a SIGTERM."""
    fleet.members[worker_id] = dataclasses.replace(fleet.members[worker_id], is_draining=True)
    router.links.update(fleet.members)
    expire(fleet, router, worker_id)


def expire(fleet: ScriptedFleet, router, worker_id: str) -> None:  # type: ignore[no-untyped-def]
    """The worker's record goes; its server answers as before: it was stopped, or cut off."""
    del fleet.members[worker_id]
    router.links.update(fleet.members)


@pytest.fixture
def script() -> Script:
    """Prefill waits for `has_token`."""
    script = Script("hello")
    script.has_token.clear()
    return script


@pytest.mark.parametrize("is_drained", [True, False])
async def test_a_prefilled_sequence_goes_to_another_decode_worker(router_for, script, is_drained) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = generate(router)
        await until(lambda: fleet.prefill.running)
        second = FakeDecode(script, fleet.prefill)
        await fleet.add(Role.DECODE, "decode-2", second)
        (leave if is_drained else expire)(fleet, router, "decode-1")
        script.has_token.set()
        assert await text_of(call) == "hello"
        assert len(second.starts) == 1
        assert not fleet.decode.starts
        await until(lambda: fleet.is_idle)


async def test_a_draining_decode_worker_takes_over_only_when_there_is_no_other(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = generate(router)
        await until(lambda: fleet.prefill.running)
        fleet.members["decode-1"] = dataclasses.replace(fleet.members["decode-1"], is_draining=True)
        router.links.update(fleet.members)
        assert router.links.taker("decode-1", "node") is router.links.decode("decode-1")
        await fleet.add(Role.DECODE, "decode-2", second := FakeDecode(script, fleet.prefill))
        router.links.update(fleet.members)
        assert router.links.taker("decode-1", "another node") is None
        script.has_token.set()
        assert await text_of(call) == "hello"
        assert len(second.starts) == 1


async def test_a_prefilled_sequence_that_nobody_can_take_fails(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = generate(router)
        await until(lambda: fleet.prefill.running)
        leave(fleet, router, "decode-1")
        await until(lambda: not fleet.decode.calls)
        script.has_token.set()
        error = await failure_of(call)
    assert isinstance(error, WorkerLostError)
    assert error.metadata["worker_id"] == "decode-1"


async def test_an_abandoned_offer_is_let_go_by_another_decode_worker(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script()
    script.has_manifest.clear()
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = generate(router)
        await until(lambda: fleet.tokenizer.open_stream_ids)
        second = FakeDecode(script, fleet.prefill)
        await fleet.add(Role.DECODE, "decode-2", second)
        leave(fleet, router, "decode-1")
        call.cancel()
        await until(lambda: not len(router.generations.running))
        script.has_manifest.set()
        await until(lambda: bool(second.cancels) and fleet.is_idle)


class Sink:
    """Hears that a sequence is lost."""

    def __init__(self) -> None:
        self.errors: list[ForebayError] = []

    def on_output(self, output: decode_pb2.SequenceOutput) -> None:
        raise AssertionError(output)

    def on_lost(self, error: ForebayError) -> None:
        self.errors.append(error)


async def test_a_sequence_started_on_an_ended_link_is_lost() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        link = DecodeLink("decode-1", channel, lambda: None)
        link.open()
        link.retire()
        await link.wait_closed()
        sink = Sink()
        link.start(decode_pb2.StartSequence(request_id="a"), sink)
        link.start_abandoned(decode_pb2.StartSequence(request_id="b"))
        assert not sink.errors, "not before its starter has returned"
        await until(lambda: sink.errors)
    assert isinstance(sink.errors[0], WorkerLostError)
    assert link.sequence_count == 0


async def test_a_worker_that_drains_ends_its_sequences_first(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello world", held_after=2)
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        calls = [generate(router, mode=LOCAL), generate(router, mode=LOCAL)]
        await until(lambda: len(fleet.decode.running) == 2)
        leave(fleet, router, "decode-1")
        calls[0].cancel()
        await until(lambda: len(fleet.decode.running) == 1)
        script.goes_on.set()
        assert await text_of(calls[1]) == "hello world"
        await until(lambda: not fleet.decode.calls)


@pytest.mark.parametrize(("mode", "worker_id"), [(LOCAL, "decode-1"), (SPLIT, "decode-1"), (SPLIT, "prefill-1")])
async def test_what_runs_on_a_silent_worker_fails_at_once(router_for, mode, worker_id) -> None:  # type: ignore[no-untyped-def]
    script = Script(held_after=2)
    if worker_id == "prefill-1":
        script.has_token.clear()
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = generate(router, mode=mode)
        await until(lambda: fleet.prefill.running if worker_id == "prefill-1" else fleet.decode.running)
        expire(fleet, router, worker_id)
        error = await failure_of(call)
        await until(lambda: fleet.is_idle)
    assert isinstance(error, WorkerLostError)
    assert error.metadata["worker_id"] == worker_id


async def test_a_prefill_worker_that_drains_ends_its_calls_first(router_for, script) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = generate(router, mode=SPLIT)
        await until(lambda: fleet.prefill.running)
        leave(fleet, router, "prefill-1")
        script.has_token.set()
        assert await text_of(call) == "hello"


async def test_text_on_a_silent_tokenizer_goes_on_at_another(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello", held_after=2)
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = generate(router, mode=LOCAL)
        await until(lambda: fleet.tokenizer.open_stream_ids)
        await fleet.add(Role.TOKENIZER, "tokenizer-2", FakeTokenizer(script))
        expire(fleet, router, "tokenizer-1")
        script.goes_on.set()
        assert await text_of(call) == "hello"


async def test_an_id_may_be_used_again_while_its_last_sequence_is_being_ended(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello", held_after=2)
    script.has_cancelled.clear()
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        for attempt in (1, 2):
            call = generate(router, request_id="one", mode=LOCAL)
            await until(lambda count=attempt: len(fleet.decode.starts) == count)  # type: ignore[misc]
            if attempt == 1:
                call.cancel()
                await until(lambda: fleet.decode.cancels)
        script.has_cancelled.set()
        script.held_after = None
        assert await text_of(generate(router, request_id="other", mode=LOCAL)) == "hello", (
            "the old one's last word came"
        )
        script.goes_on.set()
        assert await text_of(call) == "hello"
        await until(lambda: fleet.is_idle)
    ids = [start.request_id for start in fleet.decode.starts]
    assert len(set(ids)) == 3
    assert [one.partition(".")[0] for one in ids] == ["one", "one", "other"]


async def test_the_longest_id_leaves_room_for_the_attempts_own(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        for _ in range(2):
            await text_of(generate(router, request_id="x" * 128))
    first, second = (start.request_id for start in fleet.decode.starts)
    assert len(first) == len(second) == 128
    assert first != second


@pytest.mark.parametrize("phase", ["tokenize", "prefill", "decode"])
async def test_a_request_without_a_deadline_ends_all_the_same(router_for, phase) -> None:  # type: ignore[no-untyped-def]
    script = Script(held_after=2)
    for name, event in (("tokenize", script.has_encoded), ("prefill", script.has_token)):
        if phase == name:
            event.clear()
    async with ScriptedFleet(script) as fleet, router_for(fleet, max_request_s=0.3) as router:
        error = await failure_of(router.stub.Generate(router_pb2.GenerateRequest(text="x")))
        assert isinstance(error, DeadlineExceededError)
        assert error.message == "a call may take 0.3 s here"
        await until(lambda: fleet.is_idle and not len(router.generations.running))
    assert all(0 < start.deadline_s <= 0.3 for start in fleet.decode.starts)
