"""Where requests wait until the fleet has room for them: carries out what `routing.admission` decides.

Knows futures and timers, not how the fleet's room is counted. Lives on one event loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from forebay.errors import ForebayError
from forebay.routing.admission import Admission, AdmissionEffect, AdmissionLimits, Admit, Applicant, Room
from forebay.routing.option import QosTier

_LOOKED_EVERY_S: Final = 0.25
"""While somebody waits: room also comes with time alone, when a worker is kept free no longer."""


class Ticket:
    """One request at the gate. Ended from elsewhere, it hears of it where it waits."""

    def __init__(self, on_planned: Callable[[], None]) -> None:
        self._on_planned = on_planned
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._planned_s: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it has not been told yet."""
        return not self._turn.done()

    @property
    def held_s(self) -> float | None:
        """For how long it has run; None: it does not."""
        return None if self._planned_s is None else time.monotonic() - self._planned_s

    async def admitted(self) -> None:
        """Returns when it may begin. Raises ForebayError: it may not, or was ended."""
        await self._turn

    def admit(self) -> None:
        """It may begin."""
        if self.is_waiting:
            self._turn.set_result(None)

    def end(self, error: ForebayError) -> None:
        """It may not, or need not."""
        if self.is_waiting:
            self._turn.set_exception(error)
            self._turn.exception()  # not an error if nobody asks

    def planned(self) -> None:
        """Its work is charged to its workers from now on. Idempotent."""
        if self._planned_s is None:
            self._planned_s = time.monotonic()
            self._on_planned()


class AdmissionGate:
    """`room`: asked whenever it matters. `want_idle`: told while a request waits for a worker of its own."""

    def __init__(
        self, limits: AdmissionLimits, room: Callable[[], Room], want_idle: Callable[[], None] = lambda: None
    ) -> None:
        self.limits = limits
        self._admission = Admission(limits)
        self._room = room
        self._want_idle = want_idle
        self._tickets: dict[str, Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting_count(self) -> int:
        """Requests that wait here."""
        return self._admission.waiting_count

    @property
    def is_tight(self) -> bool:
        """Whether the next to come may have to wait."""
        room = self._room()
        return room.taken >= room.places * (1.0 - self.limits.reserved_share) or self.waiting_count > 0

    @asynccontextmanager
    async def applying(self, applicant: Applicant) -> AsyncIterator[Ticket]:
        """The applicant is at the gate, waits and then runs, inside the block. At its exit all of it is forgotten."""
        ticket = Ticket(lambda: self._note_planned(applicant.request_id, ticket))
        other = self._tickets.get(applicant.request_id)
        if other is not None:  # of a call that this one takes over from, and that is about to end
            self._forget(applicant.request_id, other)
        self._tickets[applicant.request_id] = ticket
        self._carry_out(self._admission.arrive(applicant, self._room(), time.monotonic()))
        try:
            yield ticket
        finally:
            if self._tickets.get(applicant.request_id) is ticket:
                self._forget(applicant.request_id, ticket)
                self.update()

    def update(self) -> None:
        """The fleet's room may have changed. Costs nothing while nobody waits."""
        if self._admission.waiting_count:
            self._carry_out(self._admission.update(self._room(), time.monotonic()))

    def close(self) -> None:
        """No timer is left."""
        if self._timer is not None:
            self._timer.cancel()

    def _note_planned(self, request_id: str, ticket: Ticket) -> None:
        if self._tickets.get(request_id) is ticket:  # else another call has taken it over
            self._admission.planned(request_id)
            self.update()

    def _forget(self, request_id: str, ticket: Ticket) -> None:
        del self._tickets[request_id]
        self._admission.withdraw(request_id)
        if ticket.held_s is not None:
            self._admission.ended(ticket.held_s)

    def _carry_out(self, effects: Iterable[AdmissionEffect]) -> None:
        for effect in effects:
            ticket = self._tickets[effect.request_id]
            if isinstance(effect, Admit):
                ticket.admit()
            else:
                ticket.end(effect.error)
        if self._admission.waiting_of(QosTier.BACKUP):
            self._want_idle()
        self._set_timer()

    def _set_timer(self) -> None:
        self.close()
        if self._admission.waiting_count:
            delay_s = min(_LOOKED_EVERY_S, max(0.0, self._admission.next_give_up_s - time.monotonic()))
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.update)
