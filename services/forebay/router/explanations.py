"""Why recent requests were planned as they were. Memory: some 3 KB for each of the last `CAPACITY`."""

from collections import OrderedDict
from typing import Final

from forebay.errors import UnknownRequestError
from forebay.routing.plan import Plan

CAPACITY: Final = 4096


class Explanations:
    """Request id → its last plan."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._plans: OrderedDict[str, Plan] = OrderedDict()

    def keep(self, request_id: str, plan: Plan) -> None:
        """The request was planned so. The oldest request beyond the capacity is forgotten."""
        self._plans[request_id] = plan
        self._plans.move_to_end(request_id)
        if len(self._plans) > self._capacity:
            self._plans.popitem(last=False)

    def of(self, request_id: str) -> Plan:
        """Raises UnknownRequestError when the request is not among the last ones of this router."""
        plan = self._plans.get(request_id)
        if plan is None:
            raise UnknownRequestError(
                f"this router planned no request of that id among its last {self._capacity}", field="request_id"
            )
        return plan
