"""What each way to serve a request would take, by the rates and loads of its workers: all of them at once. Pure.

Time is what the request waits: behind queued prompts, beside others on the same cores, between a batch's steps. Energy
and money are of the seconds that are computed for it: its prefill, and its part of each decode step.

Arrays are of shape [workers], [sites] or [sites, ways], as in `FleetColumns`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from forebay.routing.correction import Phase, magnitude_of
from forebay.routing.cost import transfer_exposed_s
from forebay.routing.fleet import FleetSnapshot
from forebay.routing.fleet_columns import Flags, Floats
from forebay.routing.forecast import Conditions, Forecast, Prediction
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.option import Mode, PlanRequest, QosTier, held_by
from forebay.routing.prefix_index import NO_MATCH, PrefixMatch

MOST_SITES: Final = 64
"""Decode workers that are looked at: those whose nodes hold most of the prompt, and others by chance. Of a larger fleet
that finds as good a one as looking at all does, nearly always, and routers that plan at once look at different ones."""
INTERLEAVED_TOKENS: Final = 64
"""Prompt tokens of a step in which others generate: what the workers' step-time SLO leaves room for."""

LEAST_DEADLINE_S: Final = 0.001
EQUAL_TIME: Final = 1.05
EQUAL_S: Final = 0.001
"""Up to so many times, and so many seconds, later is as soon."""

Amount = Any
"""A number, or an array of one for each worker."""


class Outlook:
    """One request, one fleet, whose costs must be known. What ways take is flat: site by site, way by way.

    Less is better. Ways that are none have infinite lateness.
    """

    def __init__(
        self,
        request: PlanRequest,
        fleet: FleetSnapshot,
        matches: Mapping[str, PrefixMatch],
        loads: Mapping[str, WorkerLoad],
        conditions: Conditions,
        tie_break: float,
    ) -> None:
        self._request = request
        self._conditions = conditions
        self._columns = columns = fleet.columns
        self._matches = matches
        columns.follow(loads)
        self._slots = columns.slots_of(conditions.corrections)
        self._hold()
        self._compute()
        self._decode()
        self._combine()
        ways = self._ways()
        if len(fleet.sites) > MOST_SITES:
            is_looked_at = np.zeros((len(fleet.sites), 1), np.bool_)
            is_looked_at[[*_looked_at(fleet, matches, tie_break)]] = True
            ways = ways & is_looked_at
        self.way_count = int(np.count_nonzero(ways))
        self.width = columns.way_row.shape[1]
        self.lateness = np.where(ways, self._late, np.inf).ravel()
        self.usd, self.joules = self._price.reshape(2, -1)
        self.first_s, self.token_s = self._first_s.ravel(), self._token_s.ravel()
        self.transfer_s = self._exposed_s.ravel()

    def forecast(self, number: int) -> Forecast:
        """One of the ways."""
        columns = self._columns
        site, way = divmod(number, self.width)
        row, decode_row = columns.way_row.item(site, way), columns.decode_row.item(site)
        decodes = columns.workers[decode_row]
        match = self._matches.get(decodes.node_id, NO_MATCH)
        return Forecast(
            computes=columns.workers[row],
            decodes=decodes,
            held=held_by(decodes.layout.block_tokens, self._request.prompt_tokens, match),
            lateness=self.lateness.item(number),
            margins=(self._conditions.corrections.first_token.margin, self._conditions.corrections.token.margin),
            prediction=Prediction(
                queue_s=self._queue_s.item(row),
                prefill_s=self._prefill_s.item(row) if way else self._alone_s.item(site),
                transfer_s=self.transfer_s.item(number),
                time_to_first_token_s=self.first_s.item(number),
                time_per_output_token_s=self.token_s.item(number),
                joules=self.joules.item(number),
                usd=self.usd.item(number),
                batch=int(columns.batch.item(site)),
                prefill_factor=self._prefill_factor.item(row),
                decode_factor=self._decode_factor.item(site),
            ),
        )

    def _hold(self) -> None:
        """How many of the prompt's tokens lie on each worker's node, and whether that is all of it, for each site."""
        columns, prompt_tokens = self._columns, self._request.prompt_tokens
        self._held_tokens: Amount = 0
        self._magnitude: Amount = magnitude_of(prompt_tokens)
        self._is_held: Flags | None = None
        if not self._matches:
            return
        tokens, is_all = [0] * columns.cache_count, [False] * columns.cache_count
        magnitudes = [self._magnitude] * columns.cache_count
        for node_id, match in self._matches.items():
            for block_tokens, cache in columns.caches_of_node.get(node_id, ()):
                tokens[cache], is_all[cache] = held = held_by(block_tokens, prompt_tokens, match)
                magnitudes[cache] = magnitude_of(prompt_tokens - held.tokens)
        self._held_tokens, self._magnitude = np.array((tokens, magnitudes)).take(columns.cache_of_worker, axis=1)
        self._is_held = np.array(is_all).take(columns.cache_of_site)

    def _compute(self) -> None:
        """The prompt on each worker, behind what waits there; energy and money as if it were alone."""
        request, columns = self._request, self._columns
        self._rest_tokens = request.prompt_tokens - self._held_tokens
        factors = self._conditions.corrections.factors[Phase.PREFILL]
        self._prefill_factor = factor = factors[self._magnitude, self._slots]
        busy_s = columns.cost.prefill_s(request.prompt_tokens, self._held_tokens) * factor
        tier = int(request.qos_tier is QosTier.REALTIME)
        waited_s = columns.seen_s[tier] - self._conditions.now_s
        self._queue_s = np.maximum(columns.ahead_s[tier] * factor * columns.busy_workers + waited_s, 0.0)
        self._prefill_s = busy_s * columns.busy_workers
        self._prefill_price = columns.prices * busy_s

    def _decode(self) -> None:
        """The sequence in each site's batch, with those that are there."""
        request, columns = self._request, self._columns
        context_tokens = columns.context_tokens + (request.prompt_tokens + request.output_tokens // 2)
        factors = self._conditions.corrections.factors[Phase.DECODE]
        self._decode_factor = factors[columns.batch_magnitude, self._slots.take(columns.decode_row)]
        self._alone_step_s = columns.decode_cost.decode_step_s(columns.batch, context_tokens)
        self._step_s = self._alone_step_s * self._decode_factor
        busy_s = self._step_s / columns.batch * request.output_tokens
        self._decode_price = columns.decode_prices * busy_s

    def _combine(self) -> None:
        """Seconds, joules and money of each way."""
        request, columns, corrections = self._request, self._columns, self._conditions.corrections
        decode_row = columns.decode_row
        self._alone_s = self._prefill_s.take(decode_row)
        if columns.shared_count:  # a prompt's chunks go between steps in which the others generate
            rest_tokens = self._rest_tokens if self._is_held is None else self._rest_tokens.take(decode_row)
            chunk_count = -(-rest_tokens // INTERLEAVED_TOKENS)
            self._alone_s += chunk_count * self._alone_step_s * columns.is_shared
        split_s = self._queue_s + self._prefill_s + corrections.path_s(is_split=True)
        self._first_s = split_s.take(columns.way_row)
        self._first_s[:, 0] = self._queue_s.take(decode_row) + self._alone_s + corrections.path_s(is_split=False)
        self._token_s = self._step_s[:, None] + columns.zeros
        self._exposed_s = columns.zeros
        if columns.has_strangers:
            self._exposed_s = self._transfer_s()
            self._first_s += self._exposed_s
        if columns.full_count:  # places become free one by one, in the time of an answer all of them
            token_wait_s = columns.excess * self._step_s / columns.places
            self._token_s[:, 1:] += token_wait_s[:, None]
            self._first_s[:, 0] += token_wait_s * request.output_tokens
        prefill_price = self._prefill_price.take(columns.way_row, axis=1)
        self._price = prefill_price + self._decode_price[:, :, None] + columns.hand_over
        self._late = self._lateness()

    def _transfer_s(self) -> Floats:
        """What of bringing KV from another node is waited for; 0 within a node."""
        columns = self._columns
        token_bytes = columns.decode_cost.kv_token_bytes
        held_tokens = 0 if self._is_held is None else self._held_tokens.take(columns.decode_row)
        kv_bytes = (self._request.prompt_tokens - held_tokens) * token_bytes
        tail_bytes = columns.block_tokens * token_bytes
        prefill_s = self._prefill_s.take(columns.way_row)
        exposed_s = transfer_exposed_s(self._conditions.link, kv_bytes[:, None], prefill_s, tail_bytes[:, None])
        brought_s: Floats = exposed_s * (columns.is_split & ~columns.is_near[:, None])
        return brought_s

    def _lateness(self) -> Floats:
        request = self._request
        share: Floats
        if request.qos_tier is QosTier.REALTIME:
            target, corrections = request.target, self._conditions.corrections
            first = self._first_s / (target.time_to_first_token_s / corrections.first_token.margin)
            token = self._token_s / (target.time_per_output_token_s / corrections.token.margin)
            share = np.maximum(first, token)
        elif request.deadline_s < math.inf:
            deadline_s = max(request.deadline_s, LEAST_DEADLINE_S)
            share = (self._first_s + self._token_s * request.output_tokens) / deadline_s
        else:
            return np.zeros_like(self._first_s)
        return np.maximum(share - 1.0, 0.0)

    def _ways(self) -> Flags:
        """Which there are."""
        request, columns = self._request, self._columns
        forced = request.forced_mode
        if request.is_begun or forced is Mode.LOCAL:
            has_partner = np.zeros_like(columns.has_partner)
        elif self._is_held is not None and forced is None:  # what is left is worth no hand-over
            has_partner = columns.has_partner & ~self._is_held
        elif request.alone_tokens > 0 and forced is None:
            return columns.is_way
        else:
            has_partner = columns.has_partner
        ways: Flags = columns.is_way & has_partner[:, None]
        if forced is Mode.SPLIT and not request.is_begun:
            ways[:, 0] = False
        else:
            ways[:, 0] = True if request.alone_tokens > 0 else ~has_partner
        return ways


def _looked_at(fleet: FleetSnapshot, matches: Mapping[str, PrefixMatch], tie_break: float) -> Iterable[int]:
    """Numbers of sites."""
    site_count = len(fleet.sites)
    by_depth = sorted(matches, key=lambda node_id: -matches[node_id].block_count)
    sites_of_node = fleet.columns.sites_of_node
    holders = [site for node_id in by_depth[: MOST_SITES // 2] for site in sites_of_node.get(node_id, ())]
    looked_at = set(holders[: MOST_SITES // 2])
    place, stride = int(tie_break * site_count), max(1, site_count // MOST_SITES)
    for _ in range(site_count):
        if len(looked_at) >= MOST_SITES:
            break
        looked_at.add(place % site_count)
        place += stride
    return looked_at
