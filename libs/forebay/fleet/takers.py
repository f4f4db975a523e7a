"""Whether another worker can take over what one leaves in its node's memory."""

import asyncio
from collections.abc import Iterable

from forebay.events.connection import Connection
from forebay.fleet.member import Member
from forebay.fleet.view import FleetView


def can_take_over(members: Iterable[Member], leaving: Member) -> bool:
    """Whether one of these does the same on the same node and takes work."""
    return any(
        not member.is_draining
        and member.worker_id != leaving.worker_id
        and (member.role, member.node_id, member.model_digest) == (leaving.role, leaving.node_id, leaving.model_digest)
        for member in members
    )


async def has_taker(connection: Connection, leaving: Member, timeout_s: float) -> bool:
    """Reads the fleet once it knows that this member drains: of two that leave at once, not both count on the other.

    False also when that is not known within `timeout_s`, or cannot be now.
    """
    if not connection.is_connected:
        return False
    view, changed = FleetView(connection), asyncio.Event()
    view.on_change(changed.set)
    await view.start()
    try:
        async with asyncio.timeout(timeout_s):
            while not ((own := view.members.get(leaving.worker_id)) and own.is_draining):
                await changed.wait()
                changed.clear()
        return can_take_over(view.members.values(), leaving)
    except TimeoutError:
        return False
    finally:
        await view.close()
