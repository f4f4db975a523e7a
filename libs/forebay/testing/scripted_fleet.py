"""A fleet of fake services on real servers, for contract tests of a router. Knows nothing of NATS."""

from typing import Any, Final, Self

from forebay.fleet.member import Member
from forebay.role import Role
from forebay.rpc.server import Server
from forebay.testing.scripted_workers import (
    DIGEST,
    LAYOUT,
    MODEL,
    FakeDecode,
    FakePrefill,
    FakeTokenizer,
    FakeWorkerControl,
    Script,
)
from forebay.v1 import decode_pb2_grpc, kvcache_pb2_grpc, prefill_pb2_grpc, tokenizer_pb2_grpc, worker_pb2_grpc


class ScriptedFleet:
    """Fake services on real servers, with the members that a fleet view would show. `async with` starts them."""

    def __init__(self, script: Script | None = None, *, has_prefill: bool = True) -> None:
        self.script = script or Script()
        self.members: dict[str, Member] = {}
        self.told_to_drain: list[str] = []  # worker ids, as often as they were
        self._has_prefill = has_prefill
        self._servers: dict[str, Server] = {}
        self.tokenizer = FakeTokenizer(self.script)
        self.prefill = FakePrefill(self.script)
        self.decode = FakeDecode(self.script, self.prefill)

    async def __aenter__(self) -> Self:
        await self.add(Role.TOKENIZER, "tokenizer-1", self.tokenizer)
        await self.add(Role.DECODE, "decode-1", self.decode)
        if self._has_prefill:
            await self.add(Role.PREFILL, "prefill-1", self.prefill)
        self.members["kvcache-1"] = _member(Role.KVCACHE, "kvcache-1", "127.0.0.1:1")
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers.values():
            await server.stop(0)

    async def add(self, role: Role, worker_id: str, servicer: object, listen: str = "127.0.0.1:0") -> None:
        """Serves one more member."""
        register, service = _SERVICES[role]
        server = Server(listen)
        server.add(register, servicer, service)
        if role in (Role.PREFILL, Role.DECODE):
            control = FakeWorkerControl(worker_id, self.told_to_drain)
            server.add(worker_pb2_grpc.add_WorkerServiceServicer_to_server, control, "forebay.v1.WorkerService")
        self.members[worker_id] = _member(role, worker_id, await server.start())
        self._servers[worker_id] = server

    async def kill(self, worker_id: str) -> None:
        """Ends a member's server at once; the fleet does not know yet."""
        await self._servers.pop(worker_id).stop(None)  # type: ignore[arg-type]  # None: without grace

    @property
    def is_idle(self) -> bool:
        """Whether nothing of any request is left at any service."""
        return not (
            self.tokenizer.encoding
            or self.tokenizer.open_stream_ids
            or self.prefill.running
            or self.prefill.offered
            or self.decode.running
        )


_SERVICES: Final[dict[Role, tuple[Any, str]]] = {
    Role.TOKENIZER: (tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, "forebay.v1.TokenizerService"),
    Role.PREFILL: (prefill_pb2_grpc.add_PrefillServiceServicer_to_server, "forebay.v1.PrefillService"),
    Role.KVCACHE: (kvcache_pb2_grpc.add_KvCacheServiceServicer_to_server, "forebay.v1.KvCacheService"),
    Role.DECODE: (decode_pb2_grpc.add_DecodeServiceServicer_to_server, "forebay.v1.DecodeService"),
}


def _member(role: Role, worker_id: str, address: str) -> Member:
    return Member(
        worker_id=worker_id,
        role=role,
        address=address,
        node_id="node",
        model=MODEL,
        model_digest=DIGEST,
        layout=None if role is Role.TOKENIZER else LAYOUT,
        max_sequences=8,
    )
