"""A worker process from settings to drain: model, attachment, arena, engine, warm-up, serving. For both roles.

The composition root of prefill and decode, which differ in their servicer alone.
"""

import asyncio
import gc
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Final, TypeVar

import grpc

from forebay.chips import KernelSet, chip_class_named
from forebay.chips.fleet_file import read_fleet_file
from forebay.engine.scheduler import Limits, Scheduler
from forebay.engine.types import SamplingParams
from forebay.errors import ForebayError
from forebay.events.connection import Connection, connect
from forebay.fleet.drain import drain
from forebay.fleet.load import LoadPublisher
from forebay.fleet.member import Load, Member, incarnation_now
from forebay.fleet.registrar import Registrar
from forebay.fleet.takers import has_taker
from forebay.host.cores import usable_cores
from forebay.host.shared_memory import CORES, segment_name, segment_path
from forebay.kv.hashing import root_hash
from forebay.role import Role
from forebay.routing.cost import ChipRates
from forebay.rpc.server import Server
from forebay.tasks import end_task, within
from forebay.v1 import worker_pb2_grpc
from forebay.worker.attachment import Attachment, KvLink, attach_request
from forebay.worker.block_supply import Patience
from forebay.worker.calibration import Calibration, NativePeaks
from forebay.worker.control import SERVICE_NAME, WorkerControl
from forebay.worker.core_share import CoreShare
from forebay.worker.engine_loader import EngineLoader
from forebay.worker.engine_thread import EngineThread
from forebay.worker.kv_rights import KvRights
from forebay.worker.pauses import offer_pause_metrics
from forebay.worker.rates_report import RatesReport, chip_rates, model_size
from forebay.worker.request_check import ServedModel
from forebay.worker.running_sequence import SequenceSpec
from forebay.worker.sequence_runner import SequenceRunner
from forebay.worker.settings import WorkerSettings
from forebay.worker.step_meter import StepMeter
from forebay.worker.step_metrics import offer_step_metrics
from forebay.worker.step_watch import end_when_stuck

_log = logging.getLogger(__name__)

WARM_UP_TOKENS: Final = 16
SWITCH_INTERVAL_S: Final = 0.0005
"""How long the event loop may keep the interpreter from the engine's thread. With Python's 5 ms a step of batch 8 waits
for the loop's whole turn: 223 tokens/s instead of 244."""
LAST_RELEASES_S: Final = 1.0
"""How long sequences cut off at the end may take to give up their blocks."""
TAKER_KNOWN_S: Final = 2.0
"""How long a decode worker that drains looks for another that can take its sequences over."""
LAST_WORDS_S: Final = 0.5
"""How long its last messages may take to be written: who does not hear that a sequence moved on computes it again."""
THREAD_SWITCH_S: Final = 0.001
"""How long the engine's thread may keep the interpreter from the event loop, and the other way round."""

S = TypeVar("S", bound=WorkerSettings)


@dataclass(frozen=True, slots=True)
class Worker:
    """What a servicer needs to know of the worker it serves."""

    runner: SequenceRunner
    model: ServedModel
    node_id: str
    kvcache_address: str
    calibration: Calibration
    meter: StepMeter


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What differs between prefill and decode. `span_name`: of its one RPC; None: its sequences have their own."""

    role: Role
    service_name: str
    method: str
    span_name: str | None
    register: Callable[[Any, grpc.aio.Server], None]
    make_servicer: Callable[[Worker], object]


def open_model(settings: WorkerSettings) -> EngineLoader:
    """The model and the engines of the settings' chip class. Raises StartError."""
    return EngineLoader(settings.model, chip_class_named(settings.chip_class), _most_cores(settings))


async def serve_worker(
    kind: WorkerKind, settings: S, stop: asyncio.Event, load: Callable[[S], EngineLoader] = open_model
) -> None:
    """Serves until `stop` is set, then drains; a worker whose engine broke sets it itself.

    load: called on a thread of its own.

    Raises:
        StartError: something it needs is missing or different.
        RuntimeError: the engine broke.
    """
    sys.setswitchinterval(THREAD_SWITCH_S)
    worker_id = f"{settings.node_id}-{kind.role.value}-{secrets.token_hex(4)}"
    span_names = {f"/{kind.service_name}/{kind.method}": kind.span_name}
    server = Server(settings.listen, span_names, serves_as=worker_id)
    figures = read_fleet_file(settings.fleet_file).figures_of(chip_class_named(settings.chip_class))
    loader = await asyncio.to_thread(load, settings)
    async with _running(kind, settings, worker_id, loader, stop) as worker:
        server.add(kind.register, kind.make_servicer(worker), kind.service_name)
        control = WorkerControl(worker.runner, stop)
        server.add(worker_pb2_grpc.add_WorkerServiceServicer_to_server, control, SERVICE_NAME)
        address = await server.start()
        try:
            member = _member(kind, settings, worker_id, settings.advertise or address, worker)
            rates = partial(chip_rates, figures, worker.meter.reached)
            async with _in_fleet(settings, member, worker.runner, rates) as (registrar, connection):
                await server.set_serving(True)
                if chip_class_named(settings.chip_class).kernels is KernelSet.NATIVE:
                    worker.calibration.start()
                await stop.wait()
                worker.runner.is_draining = True
                empty = _emptied(kind, worker.runner, connection, member)
                if await drain(server, registrar, empty, settings.drain_s):
                    await server.stop(LAST_WORDS_S)
        finally:
            await server.stop(0)
            await within(LAST_RELEASES_S, worker.runner.wait_idle())
    if worker.runner.is_broken:
        raise RuntimeError("the engine's thread ended by itself")


async def _emptied(kind: WorkerKind, runner: SequenceRunner, connection: Connection, member: Member) -> None:
    """Until no sequence is here: of a decode worker they move on where another takes them."""
    if kind.role is Role.DECODE and await has_taker(connection, member, TAKER_KNOWN_S):
        runner.move_on()
    await runner.wait_idle()


def _most_cores(settings: WorkerSettings) -> int:
    return settings.threads or chip_class_named(settings.chip_class).threads or usable_cores()


@asynccontextmanager
async def _running(
    kind: WorkerKind, settings: WorkerSettings, worker_id: str, loader: EngineLoader, stop: asyncio.Event
) -> AsyncIterator[Worker]:
    """The runner, attached and warm."""
    model = loader.served_model
    limits = Limits(
        block_tokens=model.layout.block_tokens,
        context_tokens=model.context_tokens,
        chunk_tokens=settings.chunk_tokens or chip_class_named(settings.chip_class).chunk_tokens,
        max_sequences=settings.max_sequences,
        step_slo_s=settings.step_slo_ms / 1e3,
    )
    patience = Patience(queue_length=settings.queue_length, blocks_s=settings.blocks_wait_s)
    runner = SequenceRunner(limits, patience, loader.make_engine)
    request = attach_request(worker_id, kind.role, model.digest, model.layout, model.arithmetic)
    link = KvLink(settings.kvcache, request, runner)
    attachment: Attachment = await link.open()
    try:
        rights = KvRights(link)
        rights.start()
        page = segment_path(segment_name(attachment.node_id, CORES))
        cores = CoreShare(page, usable_cores(), _most_cores(settings))
        engine = await asyncio.to_thread(loader.make_engine, attachment)
        meter = StepMeter(engine.model_cost, min(usable_cores(), _most_cores(settings)))
        calibration = Calibration(NativePeaks(), cores.is_anyone_busy, meter.use_peaks)
        thread = EngineThread(
            engine,
            Scheduler(limits),
            link.is_lease_valid,
            cores,
            gather_s=settings.gather_ms / 1e3,
        )
        # Only the thread holds the engine: when it takes another, the memory of a service that is gone is unmapped.
        del engine
        thread.measure_with(meter)
        runner.connect(rights, thread, on_broken=stop.set)
        watching = asyncio.create_task(
            end_when_stuck(lambda: thread.step_under_way, settings.stuck_step_s), name="step-watch"
        )
        try:
            await _warm_up(runner, model)
            gc.collect()
            gc.freeze()  # weights and modules live as long as the process
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            offer_step_metrics(meter, settings.chip_class)
            offer_pause_metrics(runner.pauses, settings.chip_class)
            yield Worker(runner, model, attachment.node_id, settings.kvcache, calibration, meter)
        finally:
            await calibration.close()
            await rights.close()
            await thread.stop()
            await end_task(watching)
            cores.close()
    finally:
        await link.close()


async def _warm_up(runner: SequenceRunner, model: ServedModel) -> None:
    """One tiny sequence through everything, so that no request pays for what is done once."""
    spec = SequenceSpec(
        sequence_id=f"warm-up-{secrets.token_hex(8)}",
        prompt_token_ids=[0] * min(WARM_UP_TOKENS, model.context_tokens - 1),
        sampling=SamplingParams(max_tokens=2, seed=0, temperature=0.0),
        hash_root=root_hash(model.digest, "", secrets.token_hex(8)),
    )
    try:
        async with runner.open(spec, lambda token_id, logprobs: None) as running:
            await running.ended()
    except ForebayError as error:
        _log.warning("not warmed up: %s", error.message)


@asynccontextmanager
async def _in_fleet(
    settings: WorkerSettings, member: Member, runner: SequenceRunner, rates: Callable[[], ChipRates | None]
) -> AsyncIterator[tuple[Registrar, Connection]]:
    """Known to the fleet, with its load and what it reaches."""
    connection = await connect(settings.nats_url, member.worker_id)
    registrar = Registrar(connection, member)
    publisher = LoadPublisher(connection, member.worker_id)
    report = RatesReport(rates, registrar.set_rates)
    runner.on_change(lambda: publisher.update(load_of(runner)))
    try:
        publisher.start()
        await registrar.start()
        report.start()
        yield registrar, connection
    finally:
        await report.close()
        await registrar.close()
        await publisher.close()
        await connection.close()


def load_of(runner: SequenceRunner) -> Load:
    """How busy the worker is now."""
    sequences = runner.sequences
    return Load(
        running_sequences=runner.running_count,
        queued_sequences=runner.queued_count,
        queued_tokens=sum(one.pending_tokens for one in sequences),
        context_tokens=sum(one.written_tokens for one in sequences),
        is_isolated=runner.is_isolated,
        queued_realtime_tokens=sum(one.pending_tokens for one in sequences if one.spec.priority == 0),
    )


def _member(kind: WorkerKind, settings: WorkerSettings, worker_id: str, address: str, worker: Worker) -> Member:
    return Member(
        worker_id=worker_id,
        role=kind.role,
        address=address,
        node_id=worker.node_id,
        model=worker.model.name,
        model_digest=worker.model.digest,
        chip_class=settings.chip_class,
        layout=worker.model.layout,
        max_sequences=settings.max_sequences,
        version=version("forebay"),
        incarnation=incarnation_now(),
        model_size=model_size(worker.meter.model, worker.model.layout),
    )
