"""A fleet as arrays: a row for each worker, and for each decode worker that takes new work one of its partners. Pure.

A plan looks at every worker, so numbers that do not depend on its request lie ready, and those that follow from a
worker's load are worked out when that changes, not when a plan is made (docs/adr/026).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import compress
from operator import is_not
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from forebay.routing.correction import Corrections, magnitude_of
from forebay.routing.cost import StepCost
from forebay.routing.in_flight import WorkerLoad

if TYPE_CHECKING:
    from forebay.routing.fleet import FleetSnapshot, Site

HAND_OVER_S: Final = 0.004
"""Of the decode worker, to take a sequence over (docs/adr/009)."""
MOST_STRANGERS: Final = 4
"""Prefill workers of other nodes that are looked at for each decode worker: those with the shortest queues."""

_IDLE: Final = WorkerLoad()

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]


class FleetColumns:
    """`follow` the loads before reading. Shapes: [workers], [sites], or [sites, ways].

    A site's ways are to compute the prompt on its decode worker (column 0), or on one of its partners.
    """

    def __init__(self, fleet: "FleetSnapshot") -> None:
        workers = (*fleet.prefill, *fleet.decode)
        costs = [fleet.costs[one.worker_id] for one in workers]
        row_of = {one.worker_id: row for row, one in enumerate(workers)}
        self.workers = workers
        self.worker_ids = tuple(row_of)
        self.cost = StepCost.stacked(costs)
        self._costs = costs
        self._rows = range(len(workers))
        self._loads: list[WorkerLoad | None] = [None] * len(workers)
        self.ahead_s = np.zeros((2, len(workers)))
        """Of the prompts before one of another tier, and before one of REALTIME, alone on all of its cores."""
        self.seen_s = np.full((2, len(workers)), -np.inf)
        """When these were seen; never, if there are none."""
        self.busy_workers = np.ones(len(workers))
        """That share its cores, itself among them."""
        self._queued_tokens = np.zeros(len(workers))
        sharers = {node_id: [row_of[one] for one in ids] for node_id, ids in fleet.core_sharers.items()}
        self._sharers = [np.array(sharers[one.node_id] if one.shares_cores else (), np.intp) for one in workers]

        caches: dict[tuple[str, int], int] = {}
        place = [caches.setdefault((one.node_id, one.layout.block_tokens), len(caches)) for one in workers]
        self.cache_of_worker = np.array(place, np.intp)
        self.caches_of_node: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """By node the tokens of a block and the number of each of its caches."""
        for (node_id, block_tokens), number in caches.items():
            self.caches_of_node[node_id].append((block_tokens, number))
        self.cache_count = len(caches)

        sites = fleet.sites
        self.decode_row = np.array([row_of[site.decode.worker_id] for site in sites], np.intp)
        self.cache_of_site = self.cache_of_worker.take(self.decode_row)
        self.decode_cost = StepCost.stacked([costs[row] for row in self.decode_row])
        self.block_tokens = np.array([site.decode.layout.block_tokens for site in sites])
        self._site_of_row = {int(row): number for number, row in enumerate(self.decode_row)}
        self.places = np.array([site.decode.max_sequences or 1 for site in sites], np.float64)
        self.batch = np.ones(len(sites))
        self.batch_magnitude = np.full(len(sites), magnitude_of(1))
        self.excess = np.zeros(len(sites))
        self.is_shared = np.zeros(len(sites))
        """1 where others are in the batch, else 0."""
        self.context_tokens = np.zeros(len(sites))
        self.shared_count = 0
        """Sites where a sequence would share its steps; `full_count`: where it would wait for a place."""
        self.full_count = 0
        self.sites_of_node: dict[str, list[int]] = defaultdict(list)
        for number, site in enumerate(sites):
            self.sites_of_node[site.decode.node_id].append(number)
        self._set_partners(sites, row_of)
        self._slots: tuple[Corrections, int, Rows] | None = None

    def slots_of(self, corrections: Corrections) -> Rows:
        """Of its workers."""
        known = self._slots
        if known is None or known[0] is not corrections or known[1] != corrections.generation:
            known = self._slots = corrections, corrections.generation, corrections.slots_of(self.worker_ids)
        return known[2]

    def follow(self, loads: Mapping[str, WorkerLoad]) -> None:
        """These are the workers' loads now; one that is not there is idle."""
        now, before = list(map(loads.get, self.worker_ids)), self._loads
        changed = [*compress(self._rows, map(is_not, now, before))]
        if changed:
            for row in changed:
                self._set_load(row, now[row] or _IDLE, before[row] or _IDLE)
            self._loads = now
            self._choose_strangers()

    def _set_load(self, row: int, load: WorkerLoad, before: WorkerLoad) -> None:
        cost = self._costs[row]
        for tier, tokens in enumerate((load.queued_tokens, load.queued_realtime_tokens)):
            self.ahead_s[tier, row] = cost.prefill_s(tokens, 0)
            self.seen_s[tier, row] = load.seen_s if tokens > 0 else -np.inf
        self._queued_tokens[row] = load.queued_tokens
        change = (load.sequences > 0) - (before.sequences > 0)
        if change:
            self.busy_workers[self._sharers[row]] += change
            if len(self._sharers[row]):
                self.busy_workers[row] -= change
        site = self._site_of_row.get(row)
        if site is not None:
            places = self.workers[row].max_sequences or 1
            batch = min(load.sequences + 1, places)
            excess = max(0, load.sequences + 1 - places)
            self.shared_count += (batch > 1) - bool(self.is_shared[site])
            self.full_count += (excess > 0) - bool(self.excess[site])
            self.batch[site] = batch
            self.is_shared[site] = batch > 1
            self.batch_magnitude[site] = magnitude_of(batch)
            self.excess[site] = excess
            self.context_tokens[site] = load.context_tokens

    def _set_partners(self, sites: "Sequence[Site]", row_of: Mapping[str, int]) -> None:
        """Who may compute. Sites of one tuple of strangers are kept together: the nearest are the same for all."""
        is_near = [bool(site.partners) and site.partners[0].node_id == site.decode.node_id for site in sites]
        counts = [
            len(site.partners) if near else min(len(site.partners), MOST_STRANGERS)
            for site, near in zip(sites, is_near, strict=True)
        ]
        width = 1 + max(counts, default=0)
        self.way_row = np.repeat(self.decode_row, width).reshape(len(sites), width)
        """Who computes the prompt; where `is_way` is false, nobody."""
        self.is_way = np.arange(width) <= np.array(counts, np.intp)[:, None]
        self.is_near = np.array(is_near, np.bool_)
        """Whether its partners are of its own node."""
        self.has_partner = np.array(counts, np.intp) > 0
        self.has_strangers = bool((self.has_partner & ~self.is_near).any())
        of_tuple: dict[int, tuple[list[int], Rows]] = {}
        for number, site in enumerate(sites):
            rows = np.array([row_of[one.worker_id] for one in site.partners], np.intp)
            if is_near[number]:
                self.way_row[number, 1 : 1 + len(rows)] = rows
            elif len(rows):
                of_tuple.setdefault(id(site.partners), ([], rows))[0].append(number)
        self._strangers = [(np.array(numbers, np.intp), rows) for numbers, rows in of_tuple.values()]
        self._choose_strangers()
        self.is_split = np.arange(width) > 0
        self.prices = np.stack((self.cost.usd_per_s, self.cost.watts))
        """Money and energy of a second on each worker; `decode_prices`: of each site's decode worker."""
        self.decode_prices = self.prices.take(self.decode_row, axis=1)
        self.hand_over = HAND_OVER_S * self.decode_prices[:, :, None] * self.is_split
        self.zeros = np.zeros((len(sites), width))

    def _choose_strangers(self) -> None:
        """Those of other nodes that can begin soonest."""
        for sites, rows in self._strangers:
            order = np.argsort(self._queued_tokens.take(rows), kind="stable")[:MOST_STRANGERS]
            self.way_row[sites, 1 : 1 + len(order)] = rows.take(order)
