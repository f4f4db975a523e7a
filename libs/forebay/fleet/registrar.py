"""Keeps one service's record in the fleet's bucket, for as long as the service lives and through NATS outages.

Knows nothing of other members.
"""

import asyncio
import dataclasses
import logging
from contextlib import suppress

import nats.errors
from nats.js.kv import KeyValue

from forebay.events.connection import Connection
from forebay.fleet.bucket import RENEW_INTERVAL_S, TTL_S, open_bucket
from forebay.fleet.member import Member
from forebay.fleet.messages import member_to_proto
from forebay.routing.cost import ChipRates
from forebay.tasks import end_task, within

_log = logging.getLogger(__name__)

LEAVE_TIMEOUT_S = 2.0


class Registrar:
    """`start` writes the record, then it is renewed; `close` deletes it."""

    def __init__(self, connection: Connection, member: Member, ttl_s: float = TTL_S) -> None:
        self._connection = connection
        self._member = member
        self._ttl_s = ttl_s
        self._interval_s = min(RENEW_INTERVAL_S, ttl_s / 3)
        self._bucket: KeyValue | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_failure_logged = False
        self._remove_listener = connection.on_reconnected(self._wake.set)

    @property
    def member(self) -> Member:
        """The record as it was last meant to be."""
        return self._member

    async def start(self) -> None:
        """Writes the record, if NATS is there, and goes on renewing it in the background."""
        await self._renew()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="fleet-registrar")

    def set_draining(self, is_draining: bool) -> None:
        """Says to the fleet, at once, whether new work is welcome."""
        self._member = dataclasses.replace(self._member, is_draining=is_draining)
        self._wake.set()

    def set_rates(self, rates: ChipRates) -> None:
        """Says to the fleet, at once, what the worker reaches."""
        self._member = dataclasses.replace(self._member, rates=rates)
        self._wake.set()

    async def close(self) -> None:
        """Leaves the fleet. Idempotent; when NATS is away the record's TTL does it."""
        if self._task is None:
            return
        self._remove_listener()
        await end_task(self._task)
        self._task = None
        if self._bucket is not None and self._connection.is_connected:
            with suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await self._bucket.delete(self._member.key)

    async def _run(self) -> None:
        while True:
            await within(self._interval_s, self._wake.wait())
            self._wake.clear()
            await self._renew()

    async def _renew(self) -> None:
        if not self._connection.is_connected:
            self._bucket = None
            return
        try:
            if self._bucket is None:
                self._bucket = await open_bucket(self._connection.jetstream(), self._ttl_s)
            await self._bucket.put(self._member.key, member_to_proto(self._member).SerializeToString())
        except (nats.errors.Error, TimeoutError, OSError) as error:
            self._bucket = None  # it may be gone: open it, and make it if need be, next time
            if not self._is_failure_logged:
                self._is_failure_logged = True
                _log.warning("cannot renew this member's record: %s; trying again", error or type(error).__name__)
            return
        self._is_failure_logged = False
