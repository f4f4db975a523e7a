"""A worker, with a fake engine unless told, attached to a KV-cache service at an address: for contract tests."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from forebay.engine.scheduler import Limits, Scheduler
from forebay.engine.types import Engine
from forebay.kernels.peaks import Peaks
from forebay.role import Role
from forebay.rpc.channel import open_channel
from forebay.rpc.server import Server
from forebay.testing.fake_engine import LAYOUT, VOCABULARY_SIZE, FakeEngine, FixedCores
from forebay.testing.kv_worker import ARITHMETIC
from forebay.worker.attachment import Attachment, KvLink, attach_request
from forebay.worker.block_supply import Patience
from forebay.worker.engine_thread import EngineThread
from forebay.worker.kv_rights import KvRights
from forebay.worker.request_check import ServedModel
from forebay.worker.sequence_runner import SequenceRunner
from forebay.worker.step_meter import StepMeter

MODEL: Final = ServedModel(
    name="fake",
    digest="fake-digest",
    layout=LAYOUT,
    arithmetic=ARITHMETIC,
    vocabulary_size=VOCABULARY_SIZE,
    context_tokens=256,
    eos_token_ids=(999,),
)
LIMITS: Final = Limits(block_tokens=LAYOUT.block_tokens, context_tokens=256, chunk_tokens=16, max_sequences=8)


@dataclass(slots=True)
class AttachedWorker:
    """Its parts; `engine` is the fake one in use now."""

    runner: SequenceRunner
    link: KvLink
    rights: KvRights
    engines: list[Engine]

    @property
    def engine(self) -> FakeEngine:
        """The engine in use now."""
        engine = self.engines[-1]
        assert isinstance(engine, FakeEngine)
        return engine


@asynccontextmanager
async def attached_worker(  # noqa: PLR0913  # what tests vary, each by name
    kvcache_address: str,
    limits: Limits = LIMITS,
    *,
    patience: Patience | None = None,
    model: ServedModel = MODEL,
    make_engine: Callable[[Attachment], Engine] = FakeEngine,
    peaks: Peaks | None = None,
    gather_s: float = 0.0,
) -> AsyncIterator[AttachedWorker]:
    """A worker that runs until the block ends. peaks: what its steps are compared with."""
    engines: list[Engine] = []

    def make(attachment: Attachment) -> Engine:
        engines.append(make_engine(attachment))
        return engines[-1]

    runner = SequenceRunner(limits, patience or Patience(blocks_s=0.5, stuck_s=0.2), make)
    request = attach_request(
        f"worker-{secrets.token_hex(4)}", Role.DECODE, model.digest, model.layout, model.arithmetic
    )
    link = KvLink(kvcache_address, request, runner)
    engine = make(await link.open(timeout_s=5))
    rights = KvRights(link)
    rights.start()
    thread = EngineThread(engine, Scheduler(limits), link.is_lease_valid, FixedCores(), gather_s=gather_s)
    meter = StepMeter(engine.model_cost)
    if peaks is not None:
        meter.use_peaks(peaks)
    thread.measure_with(meter)
    runner.connect(rights, thread)
    try:
        yield AttachedWorker(runner, link, rights, engines)
    finally:
        for one in engines:
            if isinstance(one, FakeEngine):
                one.gate.set()
        await asyncio.wait_for(runner.wait_idle(), 5)
        await rights.close()
        await thread.stop()
        await link.close()


@asynccontextmanager
async def served(
    register: Callable[[Any, grpc.aio.Server], None], servicer: object, name: str
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a real server with one servicer."""
    server = Server("127.0.0.1:0")
    server.add(register, servicer, name)
    address = await server.start()
    channel = open_channel(address)
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(0)
