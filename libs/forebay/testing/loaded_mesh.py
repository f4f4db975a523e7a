"""A mesh kept under a load whose right answers are known."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from forebay.client import AsyncClient
from forebay.testing.known_answers import learn_answers, varied_questions
from forebay.testing.mesh import RunningMesh
from forebay.testing.steady_load import SteadyLoad

_CONCURRENCY: Final = 6
_STEMS, _PER_STEM = 8, 4


@asynccontextmanager
async def loaded_mesh(mesh: RunningMesh, source: random.Random) -> AsyncIterator[tuple[SteadyLoad, list[AsyncClient]]]:
    """Learns the right answers undisturbed, then asks; gives the load, and a client of each router alone."""
    answers = await learn_answers(mesh.router_address, varied_questions(source, _STEMS, _PER_STEM))
    async with AsyncExitStack() as closing:
        client, *routers = [
            await closing.enter_async_context(AsyncClient(target))
            for target in (mesh.router_addresses, *mesh.router_addresses)
        ]
        load = SteadyLoad(client, answers, source)
        async with load.running(_CONCURRENCY):
            yield load, routers
