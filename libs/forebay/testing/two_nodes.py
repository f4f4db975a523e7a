"""A fleet of two nodes on this machine, each with KV memory of its own: A prefills, B decodes. Real processes.

One NATS, router and tokenizer for both. For tests and benchmarks of what crosses nodes.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forebay import ports
from forebay.host.process_identity import ProcessIdentity
from forebay.host.shared_memory import remove_segments
from forebay.mesh.port import free_port_base
from forebay.mesh.process import spawn, stop
from forebay.mesh.readiness import wait_until_ready
from forebay.mesh.spec import STOP_ORDER, MeshSpec, ServiceSpec
from forebay.models.default_model import resolve_model

_FIRST_PORT_BASE: Final = 21_400
_START_TIMEOUT_S: Final = 120.0
_STOP_GRACE_S: Final = 10.0
_SMALL: Final = (*("--device-bytes", str(96 * 2**20)), *("--host-bytes", "0"))

_SHORT_CHUNKS: Final = ("--chunk-tokens", "32")
"""So that blocks of a short prompt are sealed one after the other."""


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """A fleet that is up and healthy.

    Services by name: nats, router, tokenizer; kvcache-a and prefill; kvcache-b and decode.
    """

    state_dir: Path
    services: dict[str, ServiceSpec]
    processes: dict[str, ProcessIdentity]

    @property
    def router_address(self) -> str:
        """For clients."""
        return self.services["router"].address

    def address_of(self, name: str) -> str:
        """Address of a service."""
        return self.services[name].address

    def pid_of(self, name: str) -> int:
        """Process id of a service."""
        return self.processes[name].pid


@contextmanager
def two_nodes(chip_class_a: str, chip_class_b: str, *arguments_b: str) -> Iterator[TwoNodes]:
    """Starts the fleet, and stops it at the end. `arguments_b`: further flags of B's KV-cache service."""
    with tempfile.TemporaryDirectory(prefix="forebay-two-") as temporary:
        state_dir = Path(temporary)
        base = free_port_base(_FIRST_PORT_BASE)
        services = {one.name: one for one in _services(state_dir, base, (chip_class_a, chip_class_b), arguments_b)}
        processes: dict[str, ProcessIdentity] = {}
        try:
            for name, service in services.items():
                processes[name] = spawn(service.command, state_dir / f"{name}.log", os.environ)
            asyncio.run(_all_ready(services))
            yield TwoNodes(state_dir, services, processes)
        finally:
            for roles in STOP_ORDER:
                stop([processes[one.name] for one in services.values() if one.role in roles], _STOP_GRACE_S)
            for node in "ab":
                remove_segments(f"two{node}-{base}")


async def _all_ready(services: dict[str, ServiceSpec]) -> None:
    async with asyncio.timeout(_START_TIMEOUT_S):
        await asyncio.gather(*(wait_until_ready(one.role, one.address) for one in services.values()))


def _services(
    state_dir: Path, base: int, chip_classes: tuple[str, str], arguments_b: tuple[str, ...]
) -> Iterator[ServiceSpec]:
    model = str(resolve_model(None).absolute())
    yield MeshSpec(model_path=Path(model), state_dir=state_dir, port_base=base).services()[0]
    nodes = ((f"twoa-{base}", chip_classes[0]), (f"twob-{base}", chip_classes[1]))

    def service(role: str, name: str, offset: int, node_id: str, *arguments: str) -> ServiceSpec:
        shared = ("--listen", _address(base + offset), "--node-id", node_id, "--state-dir", str(state_dir))
        nats = ("--nats-url", f"nats://{_address(base + ports.NATS)}")
        return ServiceSpec(
            name, role, _address(base + offset), (sys.executable, "-m", f"forebay.{role}", *shared, *nats, *arguments)
        )

    yield service("tokenizer", "tokenizer", ports.TOKENIZER, nodes[0][0], "--model", model)
    yield service("router", "router", ports.ROUTER, nodes[0][0])
    for index, (node_id, chip_class) in enumerate(nodes):
        role, offset, letter = (("prefill", ports.PREFILL, "a"), ("decode", ports.DECODE, "b"))[index]
        chunks = _SHORT_CHUNKS if role == "prefill" else ()
        both = ("--model", model, "--chip-class", chip_class)
        further = arguments_b if letter == "b" else ()
        at = ports.KVCACHE + index
        yield service("kvcache", f"kvcache-{letter}", at, node_id, *both, *_SMALL, *further)
        yield service(role, role, offset, node_id, *both, *chunks, "--kvcache", _address(base + at))


def _address(port: int) -> str:
    return f"{ports.HOST}:{port}"
