"""What the fleet knows of a service: plain values, no protobuf, no NATS."""

import time
from dataclasses import dataclass

from forebay.kv.layout import KvLayout
from forebay.role import Role
from forebay.routing.cost import ChipRates, ModelSize


def incarnation_now() -> int:
    """Of a service that starts now: greater than that of any that was started before."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Member:
    """A service that is alive. Meanings: FleetMember in events.proto."""

    worker_id: str
    role: Role
    address: str
    node_id: str
    model: str = ""
    model_digest: str = ""
    chip_class: str = ""
    layout: KvLayout | None = None
    is_draining: bool = False
    max_sequences: int = 0
    version: str = ""
    incarnation: int = 0
    model_size: ModelSize | None = None
    rates: ChipRates | None = None

    @property
    def key(self) -> str:
        """Its key in the fleet's bucket."""
        return f"{self.role.value}.{self.worker_id}"


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a worker says it is. Meanings: WorkerLoad in events.proto."""

    running_sequences: int = 0
    queued_sequences: int = 0
    queued_tokens: int = 0
    context_tokens: int = 0
    is_isolated: bool = False
    queued_realtime_tokens: int = 0
