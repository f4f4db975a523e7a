"""Starts all services of a mesh at once, waits until each is healthy, and stops them in order.

Whatever happens during a start, either all services are healthy afterwards or nothing is left of them.
The caller holds the state folder's lock.
"""

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final

from forebay.errors import StartError
from forebay.host.process_identity import ProcessIdentity
from forebay.host.shared_memory import remove_segments, segments_of
from forebay.mesh.log_tail import last_words
from forebay.mesh.port import check_ports
from forebay.mesh.process import open_pidfd, spawn, stop
from forebay.mesh.readiness import wait_until_ready
from forebay.mesh.record import MeshRecord, ServiceRecord, read_record, remove_record, write_record
from forebay.mesh.room import check_room
from forebay.mesh.spec import STOP_ORDER, MeshSpec, ServiceSpec
from forebay.tasks import run

DEFAULT_START_TIMEOUT_S: Final = 180.0
DRAIN_S: Final = 10.0
"""How long a service that is stopped lets running work go on: its own `drain_s`, unless it is told another."""
DRAIN_GRACE_S: Final = DRAIN_S + 5.0
"""Longer than that, so that SIGKILL meets only what hangs."""
_ABORT_GRACE_S: Final = 1.0
_REMINDER_INTERVAL_S: Final = 5.0

Progress = Callable[[str], None]


def start_mesh(spec: MeshSpec, progress: Progress, timeout_s: float = DEFAULT_START_TIMEOUT_S) -> MeshRecord:
    """Starts the mesh and returns when every service is healthy.

    Raises StartError with one line if a port is taken, memory is short, or a service stops or is not healthy in time.
    """
    check_ports(spec)
    check_room(spec)
    logs = spec.state_dir / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    # Membership of an earlier run would be believed until its TTL passed.
    shutil.rmtree(spec.state_dir / "nats", ignore_errors=True)
    remove_segments(spec.node_id)
    try:
        services = _spawn_all(spec, logs)
        progress(f"starting {', '.join(service.name for service in services)}")
        run(until_ready(services, logs, progress, timeout_s))
    except BaseException:
        with _uninterrupted():
            stop_mesh(spec.state_dir, grace_s=_ABORT_GRACE_S)
        raise
    record = MeshRecord.of(spec, services, is_complete=True)
    write_record(spec.state_dir, record)
    return record


def mend_mesh(
    spec: MeshSpec, record: MeshRecord, progress: Progress, timeout_s: float = DEFAULT_START_TIMEOUT_S
) -> MeshRecord:
    """Starts the services of a complete mesh whose processes are gone; the others, and what they have in hand, go on.

    spec: that of the mesh. Returns when every service is healthy. Raises StartError when one is not in time; then, and
    when interrupted, what was started here is stopped, and the rest still goes on.
    """
    logs = spec.state_dir / "logs"
    # A restart that was killed may have left the record of a replacement, which is no service of the mesh.
    known = tuple(one for one in record.services if spec.service(one.name) or one.process.is_running())
    record = replace(record, services=known)
    gone = [service for service in record.services if not service.process.is_running()]
    progress(f"starting {', '.join(service.name for service in gone)} again; the rest goes on")
    begun: list[ProcessIdentity] = []
    try:
        for one in gone:
            log_path = logs / f"{one.name}.log"
            with suppress(FileNotFoundError):
                log_path.replace(log_path.with_name(f"{one.name}-before.log"))  # it may say what it died of
            service = spec.service(one.name)
            assert service is not None, "what is gone was left out above, unless it is known"
            begun.append(_spawn(service.at(one.address), logs))
            started = replace(one, process=begun[-1])
            services = tuple(started if other.name == one.name else other for other in record.services)
            record = replace(record, services=services)
            write_record(spec.state_dir, record)
        run(until_ready(record.services, logs, progress, timeout_s))
    except BaseException:
        with _uninterrupted():
            stop(begun, _ABORT_GRACE_S)
        raise
    return record


def stop_mesh(state_dir: Path, grace_s: float = DRAIN_GRACE_S) -> MeshRecord | None:
    """Stops what was started in this state folder and removes its shared memory; returns what that was.

    Callers stop before those they call. Works as well when some or all processes are gone already.
    Raises StartError if something is left.
    """
    record = read_record(state_dir)
    if record is None:
        return None
    for roles in STOP_ORDER:
        stop((service.process for service in record.services if service.role in roles), grace_s)
    remove_segments(record.node_id)
    shutil.rmtree(state_dir / "nats", ignore_errors=True)
    left = [f"process {one.process.pid} ({one.name})" for one in record.services if one.process.is_running()]
    left += [str(segment) for segment in segments_of(record.node_id)]
    if left:
        raise StartError(f"could not stop everything; left: {', '.join(left)}")
    remove_record(state_dir)
    return record


def _spawn_all(spec: MeshSpec, logs: Path) -> tuple[ServiceRecord, ...]:
    """Starts all processes; each is on record before the next is started, so that none can be forgotten."""
    services: tuple[ServiceRecord, ...] = ()
    write_record(spec.state_dir, MeshRecord.of(spec, services, is_complete=False))
    for service in spec.services():
        services = (*services, ServiceRecord.of(service, _spawn(service, logs)))
        write_record(spec.state_dir, MeshRecord.of(spec, services, is_complete=False))
    return services


def _spawn(service: ServiceSpec, logs: Path) -> ProcessIdentity:
    try:
        return spawn(service.command, logs / f"{service.name}.log", os.environ)
    except OSError as error:
        raise StartError(f"cannot start {service.name}: {service.command[0]}: {error.strerror}") from error


async def until_ready(services: tuple[ServiceRecord, ...], logs: Path, progress: Progress, timeout_s: float) -> None:
    """Returns when all are healthy. Raises StartError when one ends, or is not in time."""
    began_s = monotonic()
    missing = [service.name for service in services]

    async def watch(service: ServiceRecord) -> None:
        await _ready_or_ended(service, logs)
        missing.remove(service.name)
        progress(f"  {service.name:<12} healthy after {monotonic() - began_s:.1f} s")

    async def remind() -> None:
        while True:
            await asyncio.sleep(_REMINDER_INTERVAL_S)
            progress(f"  waiting for {', '.join(missing)} ({monotonic() - began_s:.0f} s)")

    watches = [asyncio.create_task(watch(service)) for service in services]
    reminder = asyncio.create_task(remind())
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*watches)  # the first that fails ends it: it is the cause, others may be consequences
    except TimeoutError as error:
        raise StartError(f"{', '.join(missing)} not healthy after {timeout_s:.0f} s; see {logs}") from error
    finally:
        for task in (*watches, reminder):
            task.cancel()


async def _ready_or_ended(service: ServiceRecord, logs: Path) -> None:
    ready = asyncio.create_task(wait_until_ready(service.role, service.address))
    ended = asyncio.create_task(until_ended(service.process))
    try:
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            log_path = logs / f"{service.name}.log"
            raise StartError(f"{service.name} stopped: {last_words(log_path)} (log: {log_path})")
        await ready
    finally:
        ready.cancel()
        ended.cancel()


async def until_ended(process: ProcessIdentity) -> None:
    """Returns when the process has ended."""
    pidfd = open_pidfd(process)
    if pidfd is None:
        return
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(pidfd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C inside the block is ignored: what is being cleaned up takes seconds and must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
