"""Brings blocks of another node into this one: planned, pulled, verified, converted, and kept while they are wanted.

Joins the parts. Knows the order of things, and that whatever happens each block that was opened is finished.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from opentelemetry.context import Context

from forebay.errors import ForebayError, InvalidFieldError, KvExhaustedError, ModelMismatchError
from forebay.kv.block_traffic import Fetch
from forebay.kv.block_transport import PullOutcome, PullRequest
from forebay.kv.bring_run import BringRun, bring_runs
from forebay.kv.conversion import ConversionPlan, plan_conversion
from forebay.kv.layout import KvLayout
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.node import KvNode
from forebay.kvcache.transfer.converters import Converters
from forebay.kvcache.transfer.landing import Landing
from forebay.kvcache.transfer.landing_target import ConvertingTarget, DirectTarget, LandingTarget
from forebay.kvcache.transfer.puller import BlockPuller
from forebay.kvcache.transfer.transfer_span import describe_failure, describe_transfer, transfer_span
from forebay.rpc.address import checked_address
from forebay.wire.bring_request import BringWish


@dataclass(frozen=True, slots=True)
class Home:
    """This node, as far as transfers care."""

    node_id: str
    model_digest: str
    layout: KvLayout


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of a transfer. held_count: blocks of the prefix that are in memory; failure: why not all came."""

    held_count: int
    transfer_bytes: int
    failure: ForebayError | None


class Bringer:
    """All transfers into this node."""

    def __init__(
        self, home: Home, node: KvNode, carrier: Carrier, puller: BlockPuller, clock: Callable[[], float]
    ) -> None:
        self._home = home
        self._node = node
        self._carrier = carrier
        self._puller = puller
        self._clock = clock
        self._converters = Converters()

    def planned(self, wish: BringWish) -> ConversionPlan:
        """How the blocks become ours.

        Raises:
            LayoutMismatchError: they cannot be converted; ModelMismatchError: they are of another model;
            InvalidFieldError: they lie here, or are not those of the same tokens; DrainingError.
        """
        self._node.refuse_if_draining()
        if wish.source.node_id == self._home.node_id:
            raise InvalidFieldError("the blocks lie on this very node", field="source.node_id")
        try:
            checked_address(wish.source.address)
        except ValueError as error:
            raise InvalidFieldError(str(error), field="source.kvcache_address") from None
        if wish.model_digest != self._home.model_digest:
            raise ModelMismatchError("the blocks are of another model", field="source.model_digest")
        plan = plan_conversion((wish.layout,), self._home.layout)
        are_alike = wish.layout.block_tokens == self._home.layout.block_tokens
        both = min(len(wish.block_hashes), len(wish.source_hashes))
        if are_alike and wish.block_hashes[:both] != wish.source_hashes[:both]:
            raise InvalidFieldError("blocks of equal size have other hashes at their source", field="block_hashes")
        return plan

    @asynccontextmanager
    async def brought(
        self, wish: BringWish, plan: ConversionPlan, trace: Context | None = None
    ) -> AsyncIterator[Brought]:
        """Inside the block the transfer is over, and what is here of the prefix is kept from eviction.

        trace: whose span the transfer's is a child of.
        """
        runs = bring_runs(plan, len(wish.source_hashes), len(wish.block_hashes))
        wanted = wish.block_hashes[: runs[-1].target_indexes.stop] if runs else []
        self._node.blocks.prefetch(wanted)  # what lies on our disk need not come
        landing = Landing(self._node.blocks, self._carrier, wanted)
        try:
            with transfer_span(wish, plan, trace) as current:
                began_s, open_count = self._clock(), landing.open_count
                transfer_bytes, failure = await self._pulled(wish, plan, runs, landing)
                describe_transfer(current, open_count, transfer_bytes, self._clock() - began_s)
                if failure is not None:
                    describe_failure(current, failure)
            # What others fill comes too; what was opened here is finished.
            async with self._node.blocks.fetched(wanted, 0.0 if failure else wish.timeout_s) as fetch:
                landing.close()
                yield Brought(_held_count(fetch, wanted), transfer_bytes, failure)
        finally:
            landing.close()

    async def _pulled(
        self, wish: BringWish, plan: ConversionPlan, runs: Sequence[BringRun], landing: Landing
    ) -> tuple[int, ForebayError | None]:
        """Bytes that came, and why others did not."""
        failure = None if landing.has_room else KvExhaustedError("not all blocks of the prefix have room here")
        if landing.open_count == 0:
            return 0, failure
        target = await self._target(plan, runs, landing)
        request = PullRequest(
            source=wish.source,
            block_hashes=[wish.source_hashes[index] for index in target.source_indexes],
            layout=wish.layout,
            timeout_s=wish.timeout_s,
            seal_wait_s=wish.seal_wait_s,
            sequence_id=wish.sequence_id,
        )
        try:
            outcome = await self._puller.pull(request, target)
        finally:
            landing.end_filling()
        transfer_bytes = len(outcome.arrived) * wish.layout.block_bytes
        return transfer_bytes, _first_error(outcome) or failure

    async def _target(self, plan: ConversionPlan, runs: Sequence[BringRun], landing: Landing) -> LandingTarget:
        if plan.sources[0] == plan.target:
            return DirectTarget(landing, sum(len(run.target_indexes) for run in runs))
        return ConvertingTarget(landing, runs, await self._converters.of(plan))


def _first_error(outcome: PullOutcome) -> ForebayError | None:
    return outcome.missing[min(outcome.missing)] if outcome.missing else None


def _held_count(fetch: Fetch, wanted: Sequence[bytes]) -> int:
    held = {one.block_hash for one in fetch.held}
    return next((index for index, block_hash in enumerate(wanted) if block_hash not in held), len(wanted))
