"""A decode worker goes on with a sequence that a lost worker of its node left in memory, and computes nothing again."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from forebay.engine.types import SamplingParams
from forebay.kv.hashing import root_hash
from forebay.testing.attached_worker import MODEL, AttachedWorker, attached_worker
from forebay.testing.decode_rig import PROMPT, Rig, StepwiseEngine
from forebay.testing.fake_engine import continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2
from forebay.worker.running_sequence import SequenceSpec

Start = Callable[..., Any]
MOST_TOKENS = 20
ANSWER = continuation(PROMPT, MOST_TOKENS)
GENERATED = 9  # by the worker that is lost: 30 positions are written, and seven blocks of four are full


@dataclass
class Left:
    """A sequence in the middle of its answer, and its worker, which does not go on."""

    worker: AttachedWorker
    epoch: int

    def fields(self, heard: int = GENERATED, **changes: Any) -> dict[str, Any]:
        """Of a StartSequence by a router that has heard so many tokens."""
        return {
            "emitted_token_ids": ANSWER[:heard],
            "left_behind_epoch": self.epoch,
            "sampling": common_pb2.SamplingParams(max_tokens=MOST_TOKENS),
        } | changes


@asynccontextmanager
async def left_behind(rig: Rig, *, is_sealed: bool = True) -> AsyncIterator[Left]:
    async with attached_worker(rig.kvcache.address, make_engine=StepwiseEngine) as worker:
        spec = SequenceSpec(
            sequence_id="r",
            prompt_token_ids=PROMPT,
            sampling=SamplingParams(max_tokens=MOST_TOKENS, seed=0),
            hash_root=root_hash(MODEL.digest, "", ""),
            seals_as_filled=is_sealed,
        )
        heard: list[int] = []
        engine = worker.engine
        assert isinstance(engine, StepwiseEngine)
        engine.is_stepwise = True
        async with worker.runner.open(spec, lambda token_id, logprobs: heard.append(token_id)):
            while len(heard) < GENERATED:
                before = len(engine.batches)
                engine.gate.set()
                await until(lambda before=before: len(engine.batches) > before)
            assert heard == ANSWER[:GENERATED]
            sealed = (len(PROMPT) + GENERATED - 1) // 4 if is_sealed else 0
            await until(lambda: rig.kvcache.stats().tiers[0].sealed == sealed)
            yield Left(worker, worker.runner.epoch_of("r"))
            engine.gate.set()


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("heard", [GENERATED, GENERATED - 2, GENERATED - 3, 1])  # the last two: less than is sealed
async def test_it_goes_on_behind_the_last_token_that_was_heard(start: Start, is_sealed: bool, heard: int) -> None:
    async with start() as rig, left_behind(rig, is_sealed=is_sealed) as left:
        assert left.worker.link.attachment is not None
        rig.kvcache.bury(left.worker.link.attachment.attachment_id)
        told = await rig.link.generate(**left.fields(heard))
        assert told.tokens == ANSWER[heard:]
        assert (told.last.summary.computed_prompt_tokens, told.last.summary.cached_tokens) == (0, len(PROMPT))
        assert rig.kvcache.stats().take_overs == 1
        await until(rig.kvcache.is_all_released)
        # What the lost worker had not sealed is found now, and is what its hash says.
        again = await rig.link.generate(
            "again", prompt_token_ids=PROMPT + ANSWER[:10], sampling=left.fields()["sampling"]
        )
        assert again.tokens[:10] == ANSWER[10:]
        assert again.last.summary.cached_tokens == 28
        await until(rig.kvcache.is_all_released)


async def test_of_a_worker_that_lives_nothing_is_taken(start: Start) -> None:
    async with start() as rig, left_behind(rig) as left:
        told = await rig.link.generate(**left.fields())
        assert told.last.error.reason == "WORKER_LOST"
        assert rig.kvcache.stats().sequences == 1, "it is still its own"


@pytest.mark.parametrize("change", ["released", "taken"])
async def test_what_is_gone_is_said_to_be(start: Start, change: str) -> None:
    async with start() as rig, attached_worker(rig.kvcache.address) as other:
        async with left_behind(rig) as left:
            assert left.worker.link.attachment is not None
            rig.kvcache.bury(left.worker.link.attachment.attachment_id)
            if change == "released":
                rig.worker.rights.decline("r", left.epoch)
                await until(rig.kvcache.is_all_released)
            else:
                await other.rights.take_over("r", left.epoch, 0)
            assert (await rig.link.generate(**left.fields())).last.error.reason == "WORKER_LOST"
        other.rights.release("r")
        await until(rig.kvcache.is_all_released)


@pytest.mark.parametrize("changes", [{"emitted_token_ids": []}, {"manifest": common_pb2.Manifest(sequence_id="r")}])
async def test_a_contradiction_is_refused(start: Start, changes: dict[str, Any]) -> None:
    async with start() as rig:
        told = await rig.link.generate(**({"emitted_token_ids": ANSWER[:1], "left_behind_epoch": 1} | changes))
        assert told.last.error.reason == "INVALID_FIELD"
        assert told.last.error.metadata["field"] == "left_behind_epoch"
