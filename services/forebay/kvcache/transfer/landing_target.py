"""Where pulled blocks go: into DEVICE blocks as they are, or through staging memory, converted. Both are BlockTargets.

A target's `source_indexes` say what is to be pulled: block i of the pull is block source_indexes[i] of the sequence.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from forebay.errors import BlockCorruptError, KvExhaustedError
from forebay.kernels.converter import BlockConverter
from forebay.kv.bring_run import BringRun
from forebay.kvcache.transfer.landing import Landing
from forebay.kvcache.transfer.puller import WINDOW_BYTES

_SPARE_RUNS: Final = 2  # one being read, one that waits for a block to come again


class DirectTarget:
    """Blocks of our layout: read straight into DEVICE memory."""

    def __init__(self, landing: Landing, block_count: int) -> None:
        self._landing = landing
        self.source_indexes = [index for index in range(block_count) if landing.is_open(index)]

    def memory(self, block_index: int) -> memoryview:
        """As BlockTarget.memory."""
        return self._landing.memory(self.source_indexes[block_index])

    def arrived(self, block_index: int) -> None:
        """As BlockTarget.arrived."""
        self._landing.finish(self.source_indexes[block_index])


class ConvertingTarget:
    """Blocks of another layout: each run is converted as soon as all of it is here, and its staging memory given up.

    Invariant: what is staged is bounded by what may be on its way, whatever the source sends.
    """

    def __init__(self, landing: Landing, runs: Sequence[BringRun], converter: BlockConverter) -> None:
        self._landing = landing
        self._converter = converter
        wanted = [run for run in runs if any(map(landing.is_open, run.target_indexes))]
        self._run_of = [run for run in wanted for _ in run.source_indexes]
        self.source_indexes = [index for run in wanted for index in run.source_indexes]
        firsts = accumulate((len(run.source_indexes) for run in wanted), initial=0)
        self._first_of = dict(zip((run.source_indexes for run in wanted), firsts, strict=False))
        self._staged: dict[int, bytearray] = {}  # by block of the pull
        self._arrived: set[int] = set()  # of those staged
        self._block_bytes = converter.plan.sources[0].block_bytes
        run_blocks = max((len(run.source_indexes) for run in wanted), default=0)
        self._most_staged = WINDOW_BYTES // self._block_bytes + 1 + _SPARE_RUNS * run_blocks

    def memory(self, block_index: int) -> memoryview:
        """As BlockTarget.memory. Errors: BlockCorruptError."""
        if block_index not in self._staged:
            if len(self._staged) >= self._most_staged:
                raise BlockCorruptError("too many blocks did not match their digests")
            self._staged[block_index] = bytearray(self._block_bytes)
        return memoryview(self._staged[block_index])

    def arrived(self, block_index: int) -> None:
        """As BlockTarget.arrived. Errors: KvExhaustedError when there is no memory to convert."""
        self._arrived.add(block_index)
        run = self._run_of[block_index]
        first = self._first_of[run.source_indexes]
        blocks = range(first, first + len(run.source_indexes))
        if self._arrived.issuperset(blocks):
            self._convert(run, blocks)

    def _convert(self, run: BringRun, blocks: range) -> None:
        sources = [memoryview(self._staged[block]) for block in blocks]
        targets = [self._target(index) for index in run.target_indexes]
        try:
            self._converter.convert([sources], targets, run.token_count)
        except MemoryError:
            raise KvExhaustedError("no memory to convert KV blocks") from None
        for index in run.target_indexes:
            if self._landing.is_open(index):
                self._landing.finish(index)
        for block in blocks:
            del self._staged[block]
            self._arrived.discard(block)

    def _target(self, index: int) -> memoryview:
        """A block's memory; of one that is here already, or has no room, some that is thrown away."""
        if self._landing.is_open(index):
            return self._landing.memory(index)
        return memoryview(bytearray(self._converter.plan.target.block_bytes))


LandingTarget = DirectTarget | ConvertingTarget
