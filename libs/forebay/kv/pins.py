"""Pins: blocks that somebody keeps from eviction until a time, whether or not that somebody still lives.

Knows no clock: times are arguments, of any monotonic clock.
"""

from collections.abc import Iterable, Iterator

from forebay.errors import KvExhaustedError
from forebay.kv.block_traffic import BlockTraffic, Held
from forebay.kv.effect_log import EffectLog

MOST_PINNED_SHARE = 0.5
"""Of the DEVICE tier's blocks: pins must leave room for requests."""


class Pins:
    """At most one pin for each hash; a later one lengthens it."""

    def __init__(self, traffic: BlockTraffic, device_block_count: int) -> None:
        self._traffic = traffic
        self._most_pins = int(device_block_count * MOST_PINNED_SHARE)
        self._pins: dict[bytes, tuple[float, Held]] = {}

    def __len__(self) -> int:
        return len(self._pins)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pins)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._pins

    def pin(self, block_hashes: Iterable[bytes], until_s: float) -> list[bytes]:
        """Pins blocks in the tier where each is nearest; returns the hashes that are not held.

        Errors: KvExhaustedError when there would be more pins than half the DEVICE blocks; then nothing was pinned.
        """
        wanted = list(dict.fromkeys(block_hashes))
        new_count = sum(one not in self._pins and self._traffic.has(one) for one in wanted)
        if len(self._pins) + new_count > self._most_pins:
            raise KvExhaustedError(
                f"{new_count} more blocks cannot be pinned: {len(self._pins)} are, and at most {self._most_pins} can be"
                " (half the device tier); name fewer, or wait until pins end"
            )
        missing: list[bytes] = []
        for block_hash in wanted:
            known = self._pins.get(block_hash)
            held = self._traffic.hold(block_hash) if known is None else known[1]
            if held is None:
                missing.append(block_hash)
            else:
                self._pins[block_hash] = (until_s if known is None else max(until_s, known[0]), held)
        return missing

    def unpin(self, block_hashes: Iterable[bytes], log: EffectLog) -> int:
        """Ends pins before their time; returns how many."""
        ended = [self._pins.pop(one)[1] for one in block_hashes if one in self._pins]
        self._traffic.let_go(ended, log)
        return len(ended)

    def expire(self, now_s: float, log: EffectLog) -> None:
        """Ends pins whose time has come."""
        self.unpin([one for one, (until_s, _) in self._pins.items() if until_s <= now_s], log)
