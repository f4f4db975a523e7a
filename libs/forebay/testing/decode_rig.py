"""Both ends of a decode worker's stream, with a real KV-cache service and a fake engine: for contract tests."""

import asyncio
import dataclasses
from typing import Any

from forebay.engine.types import Sampled, SamplingParams, Slice
from forebay.kv.hashing import root_hash
from forebay.rpc.status import translated
from forebay.testing.attached_worker import MODEL, AttachedWorker, attached_worker
from forebay.testing.fake_engine import FakeEngine
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2
from forebay.wire.layout import layout_to_proto
from forebay.worker.attachment import Attachment
from forebay.worker.running_sequence import SequenceSpec

ONE_TOKEN = SamplingParams(max_tokens=1, seed=0)
PROMPT = list(range(1, 23))  # 22 tokens: five full blocks of four, and two tokens


@dataclasses.dataclass
class Heard:
    """Everything heard of one sequence."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: int = 0
    messages: int = 0
    last: decode_pb2.SequenceOutput | None = None


class Link:
    """The router's end of a stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.heard: dict[str, Heard] = {}
        self.epochs: dict[str, list[int]] = {}  # that were told
        self.messages = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with translated():
            async for response in self.call:
                self.messages += 1
                assert len({one.request_id for one in response.outputs}) == len(response.outputs)
                for output in response.outputs:
                    heard = self.heard.setdefault(output.request_id, Heard())
                    assert heard.last is None or output.HasField("error")
                    heard.tokens += output.token_ids
                    if output.kv_epoch:
                        self.epochs.setdefault(output.request_id, []).append(output.kv_epoch)
                    heard.messages += 1
                    heard.logprobs += len(output.logprobs)
                    if output.finish_reason or output.HasField("error"):
                        heard.last = output

    async def start(self, request_id: str = "r", **changes: Any) -> None:
        fields: dict[str, Any] = {
            "prompt_token_ids": PROMPT,
            "sampling": common_pb2.SamplingParams(max_tokens=10),
        } | changes
        start = decode_pb2.StartSequence(request_id=request_id, **fields)
        await self.call.write(decode_pb2.DecodeRequest(start=start))

    async def cancel(self, request_id: str = "r") -> None:
        await self.call.write(decode_pb2.DecodeRequest(cancel=decode_pb2.CancelSequence(request_id=request_id)))

    async def end_of(self, request_id: str = "r") -> Heard:
        await until(lambda: request_id in self.heard and self.heard[request_id].last is not None)
        return self.heard[request_id]

    async def generate(self, request_id: str = "r", **changes: Any) -> Heard:
        await self.start(request_id, **changes)
        return await self.end_of(request_id)


@dataclasses.dataclass
class Rig:
    kvcache: Any
    worker: AttachedWorker
    stub: Any
    link: Link

    async def offer(self, request_id: str = "r", prompt: list[int] = PROMPT, **changes: Any) -> dict[str, Any]:
        """What a prefill worker leaves: the fields of a StartSequence in SPLIT."""
        sampling = changes.get("sampling", common_pb2.SamplingParams(max_tokens=10))
        async with attached_worker(self.kvcache.address) as prefill:
            spec = SequenceSpec(
                sequence_id=request_id,
                prompt_token_ids=prompt,
                sampling=ONE_TOKEN,
                hash_root=root_hash(MODEL.digest, "", ""),
                seals_as_filled=False,
            )
            async with prefill.runner.open(spec, lambda token_id, logprobs: None) as running:
                await running.ended()
                epoch, hashes = await prefill.runner.hand_over(running)
                prefill.runner.give_away(running)
                first = running.new_token_ids
        manifest = common_pb2.Manifest(
            sequence_id=request_id,
            node_id=self.kvcache.node_id,
            kvcache_address=self.kvcache.address,
            epoch=epoch,
            layout=layout_to_proto(MODEL.layout),
            token_count=len(prompt),
            block_hashes=hashes,
            model_digest=MODEL.digest,
        )
        return {
            "prompt_token_ids": prompt,
            "emitted_token_ids": first,
            "manifest": manifest,
            "sampling": sampling,
        } | changes


class StepwiseEngine(FakeEngine):
    """Once told so, makes one step each time its gate is opened."""

    is_stepwise = False

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.batches: list[set[str]] = []

    def step(self, slices: list[Slice]) -> list[Sampled]:
        sampled = super().step(slices)
        self.batches.append({one.sequence.sequence_id for one in slices})
        if self.is_stepwise:
            self.gate.clear()
        return sampled
