"""Advice on the roles of the fleet's workers."""

from collections.abc import Callable

from forebay.errors import NothingToAdviseError
from forebay.routing.demand import Demand
from forebay.routing.fleet import FleetSnapshot
from forebay.routing.option import Target
from forebay.routing.role_advice import Recommendation
from forebay.routing.role_split import RoleWorker, recommend


class Advising:
    """snapshot: the fleet as it is now."""

    def __init__(self, snapshot: Callable[[], FleetSnapshot]) -> None:
        self._snapshot = snapshot

    def advise(self, demand: Demand, target: Target) -> Recommendation:
        """Raises NothingToAdviseError where there is nothing to divide, or nothing is known of the chips."""
        fleet = self._snapshot()
        workers = [one for one in (*fleet.prefill, *fleet.decode) if not one.is_draining]
        if not fleet.costs:
            raise NothingToAdviseError("no worker has told what it reaches yet; they do after the first requests")
        advice = recommend(
            [
                RoleWorker(
                    one.worker_id,
                    one.role,
                    one.node_id,
                    fleet.costs[one.worker_id],
                    one.max_sequences,
                    one.shares_cores,
                )
                for one in workers
            ],
            demand,
            target,
        )
        if advice is None:
            raise NothingToAdviseError("roles are divided among prefill and decode workers; the fleet has not both")
        return advice
