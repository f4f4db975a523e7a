"""How every service stops: it says at once that it wants no new work, and lets what runs finish for a while."""

from collections.abc import Awaitable

from forebay.fleet.registrar import Registrar
from forebay.rpc.server import Server
from forebay.tasks import within


async def drain(server: Server, registrar: Registrar, idle: Awaitable[object], drain_s: float) -> bool:
    """Tells fleet and health checks, then waits for `idle`; returns whether that came within `drain_s`.

    Refusing new work and ending what is left is the caller's.
    """
    registrar.set_draining(True)
    await server.set_serving(False)
    return await within(drain_s, idle)
