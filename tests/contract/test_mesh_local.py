"""Starting and stopping a mesh of small stand-in processes: what happens when one of them does not do as it should."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.host.process_identity import ProcessIdentity
from forebay.host.shared_memory import segments_of
from forebay.mesh.inspection import inspect_mesh
from forebay.mesh.local_mesh import mend_mesh, start_mesh, stop_mesh
from forebay.mesh.port import check_ports, free_port_base
from forebay.mesh.record import MeshRecord, read_record, write_record
from forebay.mesh.spec import MeshSpec, ServiceSpec

HEALTHY = """
import asyncio, pathlib, signal, sys
from forebay.rpc.server import Server

async def serve(address, order):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = Server(address)
    await server.start()
    await server.set_serving(True)
    await stop.wait()
    with open(order, "a") as file:
        file.write(sys.argv[3] + "\\n")
    await server.stop(0)

asyncio.run(serve(sys.argv[1], sys.argv[2]))
"""
FAILS = "import sys; print('loading'); sys.exit('12:00 ERROR cannot start: the model is missing; give another')"
HANGS = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"


@dataclass(frozen=True)
class StandIns(MeshSpec):
    """A mesh whose services are programs of this file; `programs` replaces some by role."""

    programs: tuple[tuple[str, str], ...] = ()

    def services(self) -> list[ServiceSpec]:
        roles = ("nats", "kvcache", "decode", "router")
        return [self._stand_in(role, offset) for offset, role in enumerate(roles)]

    def _stand_in(self, role: str, offset: int) -> ServiceSpec:
        address = f"127.0.0.1:{self.port_base + offset}"
        if role == "nats":
            real = next(one for one in MeshSpec.services(self) if one.role == "nats")
            return ServiceSpec("nats", "nats", real.address, real.command)
        program = dict(self.programs).get(role, HEALTHY)
        order = str(self.state_dir / "order")
        return ServiceSpec(role, role, address, (sys.executable, "-c", program, address, order, role))


Make = Callable[..., StandIns]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    def making(**programs: str) -> StandIns:
        return StandIns(
            model_path=Path("/m"),
            state_dir=tmp_path,
            threads=1,
            port_base=free_port_base(27_400),
            programs=tuple(programs.items()),
        )

    yield making
    stop_mesh(tmp_path, grace_s=0)


def _quiet(line: str) -> None:
    pass


def _leave_segment(spec: MeshSpec) -> Path:
    segment = Path(f"/dev/shm/forebay-{spec.node_id}-device")
    segment.write_bytes(b"left behind")
    return segment


def test_all_are_healthy_and_stop_callers_first(make: Make, tmp_path: Path) -> None:
    spec = make()
    lines: list[str] = []
    record = start_mesh(spec, lines.append)
    assert record == read_record(tmp_path)
    assert record.is_complete
    assert lines[0] == "starting nats, kvcache, decode, router"
    assert sorted(line.split()[0] for line in lines[1:]) == ["decode", "kvcache", "nats", "router"]
    statuses = inspect_mesh(record)
    assert all(status.is_healthy for status in statuses)
    assert all((status.memory.pss_bytes or 0) > 1 << 20 for status in statuses)

    _leave_segment(spec)
    assert stop_mesh(tmp_path) == record
    assert (tmp_path / "order").read_text().split() == ["router", "decode", "kvcache"]
    assert not any(service.process.is_running() for service in record.services)
    assert segments_of(spec.node_id) == []
    assert stop_mesh(tmp_path) is None


def test_a_service_that_stops_says_why_and_takes_the_others_along(make: Make, tmp_path: Path) -> None:
    spec = make(decode=FAILS)
    seen: list[MeshRecord | None] = []
    with pytest.raises(StartError, match="decode stopped: the model is missing; give another") as caught:
        start_mesh(spec, lambda line: seen.append(read_record(tmp_path)))
    assert "\n" not in caught.value.message
    assert str(tmp_path / "logs" / "decode.log") in caught.value.message
    (record, *_) = seen
    assert record is not None
    assert len(record.services) == 4
    assert not record.is_complete
    assert not any(service.process.is_running() for service in record.services)
    assert read_record(tmp_path) is None


def test_a_service_that_never_gets_healthy_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"router not healthy after 1 s"):
        start_mesh(make(router="import signal; signal.pause()"), _quiet, timeout_s=1)
    assert read_record(tmp_path) is None


def test_a_service_that_does_not_listen_to_sigterm_is_ended(make: Make, tmp_path: Path) -> None:
    spec = make(decode=HANGS)
    with pytest.raises(StartError, match="decode not healthy"):
        start_mesh(spec, _quiet, timeout_s=1)
    assert read_record(tmp_path) is None
    check_ports(spec)


def _kill(record: MeshRecord, name: str) -> None:
    process = next(service.process for service in record.services if service.name == name)
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


def test_what_is_gone_is_started_again_and_the_rest_goes_on(make: Make, tmp_path: Path) -> None:
    spec = make()
    record = start_mesh(spec, _quiet)
    _kill(record, "decode")
    mended = mend_mesh(spec, record, _quiet)
    assert mended == read_record(tmp_path)
    assert all(status.is_healthy for status in inspect_mesh(mended))
    same = [one for one, before in zip(mended.services, record.services, strict=True) if one == before]
    assert sorted(one.name for one in same) == ["kvcache", "nats", "router"]
    assert (tmp_path / "logs" / "decode-before.log").is_file()
    stop_mesh(tmp_path)


def test_a_replacement_that_a_killed_restart_left_is_forgotten(make: Make, tmp_path: Path) -> None:
    spec = make()
    record = start_mesh(spec, _quiet)
    _kill(record, "decode")
    gone = next(one for one in record.services if one.name == "decode")
    left = replace(record, services=(*record.services, replace(gone, name="decode-next")))
    mended = mend_mesh(spec, left, _quiet)
    assert [one.name for one in mended.services] == [one.name for one in record.services]
    assert all(status.is_healthy for status in inspect_mesh(mended))
    stop_mesh(tmp_path)


def test_what_cannot_be_started_again_leaves_the_rest_running(make: Make, tmp_path: Path) -> None:
    record = start_mesh(make(), _quiet)
    _kill(record, "decode")
    with pytest.raises(StartError, match="decode stopped: the model is missing"):
        mend_mesh(make(decode=FAILS), record, _quiet)
    states = {status.name: status.health for status in inspect_mesh(record)}
    assert states == {"nats": "serving", "kvcache": "serving", "decode": "gone", "router": "serving"}
    left = stop_mesh(tmp_path)
    assert left is not None
    assert not any(service.process.is_running() for service in left.services)


def test_killed_services_are_seen_and_the_rest_is_stopped(make: Make, tmp_path: Path) -> None:
    spec = make()
    record = start_mesh(spec, _quiet)
    killed = next(service for service in record.services if service.name == "decode")
    os.kill(killed.process.pid, signal.SIGKILL)
    os.waitpid(killed.process.pid, 0)
    states = {status.name: status.health for status in inspect_mesh(record)}
    assert states == {"nats": "serving", "kvcache": "serving", "decode": "gone", "router": "serving"}
    _leave_segment(spec)
    stop_mesh(tmp_path)
    assert not any(service.process.is_running() for service in record.services)
    assert segments_of(spec.node_id) == []


def test_a_stopped_process_is_unreachable_not_healthy(make: Make) -> None:
    record = start_mesh(make(), _quiet)
    frozen = next(service for service in record.services if service.name == "kvcache")
    os.kill(frozen.process.pid, signal.SIGSTOP)
    try:
        states = {status.name: status.health for status in inspect_mesh(record)}
    finally:
        os.kill(frozen.process.pid, signal.SIGCONT)
    assert states["kvcache"] == "unreachable"
    assert states["decode"] == "serving"


def test_a_record_of_processes_long_gone_harms_nobody(make: Make, tmp_path: Path) -> None:
    """Their pids belong to others by now: here, to this very test."""
    record = start_mesh(make(), _quiet)
    stop_mesh(tmp_path)
    mine = ProcessIdentity(os.getpid(), start_ticks=1)
    services = tuple(type(service)(service.name, service.role, service.address, mine) for service in record.services)
    write_record(tmp_path, replace(record, services=services))
    assert [status.health for status in inspect_mesh(record)] == ["gone"] * 4
    assert stop_mesh(tmp_path) is not None


def test_a_taken_port_is_said_with_its_holder_and_a_way_out(make: Make, tmp_path: Path) -> None:
    spec = make()
    with socket.create_server(("127.0.0.1", spec.port_base + 1)), pytest.raises(StartError) as caught:
        start_mesh(spec, _quiet)
    message = caught.value.message
    assert message.startswith(f"port {spec.port_base + 1} (kvcache) is taken by ")
    assert f"(pid {os.getpid()})" in message
    assert "--port-base " in message
    assert "\n" not in message
    assert read_record(tmp_path) is None


def test_a_program_that_is_missing_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StartError, match=r"cannot start nats: .*nats-server: No such file"):
        start_mesh(make(), _quiet)
    assert read_record(tmp_path) is None


INTERRUPTED = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import test_mesh_local as stand_ins
from forebay.mesh.local_mesh import start_mesh
spec = stand_ins.StandIns(
    model_path=pathlib.Path("/m"), state_dir=pathlib.Path(sys.argv[2]), threads=1, port_base=int(sys.argv[3]),
    programs=(("router", "import signal; signal.pause()"),),
)
start_mesh(spec, lambda line: print(line, flush=True))
"""


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    port_base = free_port_base(27_400)
    command = [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent), str(tmp_path), str(port_base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as starting:
        killer = threading.Timer(60, starting.kill)
        killer.start()
        try:
            assert starting.stdout is not None
            assert starting.stdout.readline().startswith("starting ")
            record = read_record(tmp_path)
            starting.send_signal(signal.SIGINT)
            starting.send_signal(signal.SIGINT)  # the impatient press twice
            _, errors = starting.communicate()
        finally:
            killer.cancel()
    assert "KeyboardInterrupt" in errors
    assert record is not None
    assert len(record.services) == 4
    assert not any(service.process.is_running() for service in record.services)
    assert read_record(tmp_path) is None
