"""Which node holds which sealed block in which tier, as far as this reader was told. Pure.

Knows hashes, not tokens. It may be wrong either way for a moment: the KV-cache service has the last word.

Memory: at most 190 bytes per block hash (the hash, and its place in a dictionary at its emptiest; holders are shared
tuples), whatever the number of nodes that hold it, so 50 MB at the default capacity. Beyond the capacity the hashes
used longest ago are forgotten, which costs a prefill that might have been saved, nothing else.

What was matched is put where those used last are only when hashes are to be forgotten: to move each of a long prompt's
hashes costs several times what finding them does, and most are matched again before that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Final

from forebay.kv.tier import Tier

DEFAULT_CAPACITY: Final = 262_144
_FORGOTTEN_AT_ONCE: Final = 16  # one so-manieth of the capacity: finding the oldest hash passes over all gaps before it


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """A run of blocks from a prompt's start that one node holds: the nearest tier of each."""

    tiers: tuple[Tier, ...]

    @property
    def block_count(self) -> int:
        """Blocks held, counted from the first."""
        return len(self.tiers)


NO_MATCH: Final = PrefixMatch(())

# A node's id with its tiers as bits, of every node that holds a block. The lowest bit is the nearest tier.
_Holders = tuple[tuple[str, int], ...]
_TIERS: Final = tuple(Tier)
_BIT_OF: Final = {tier: 1 << place for place, tier in enumerate(_TIERS)}


class PrefixIndex:
    """Block hash → holders, at most `capacity` hashes, least recently used forgotten first."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._holders: dict[bytes, _Holders] = {}  # used longest ago first
        self._shared: dict[_Holders, _Holders] = {}
        self._matched: dict[bytes, Sequence[bytes]] = {}  # runs by their last hash, matched longest ago first
        self._matched_count = 0  # hashes of these runs

    def __len__(self) -> int:
        return len(self._holders)

    def store(self, node_id: str, tier: Tier, hashes: Iterable[bytes]) -> None:
        """The node holds these blocks in this tier, perhaps in others too."""
        # Backwards, so that of one prompt's blocks the first is the last to be forgotten.
        for block_hash in reversed(tuple(hashes)):
            old = self._holders.pop(block_hash, ())
            self._holders[block_hash] = self._changed(old, node_id, add=_BIT_OF[tier], drop=0)
        if len(self._holders) > self._capacity:
            self._forget_oldest(len(self._holders) - self._capacity + self._capacity // _FORGOTTEN_AT_ONCE)

    def remove(self, node_id: str, tier: Tier, hashes: Iterable[bytes]) -> None:
        """The node does not hold these blocks in this tier any more. Unknown ones are ignored."""
        for block_hash in hashes:
            if block_hash in self._holders:
                self._update(block_hash, node_id, drop=_BIT_OF[tier])

    def move(self, node_id: str, from_tier: Tier, to_tier: Tier, hashes: Iterable[bytes]) -> None:
        """The node moved these blocks."""
        moved = tuple(hashes)
        self.remove(node_id, from_tier, moved)
        self.store(node_id, to_tier, moved)

    def replace(self, node_id: str, entries: Iterable[tuple[bytes, Tier]]) -> None:
        """The node holds exactly these. Costs a pass over the whole index."""
        self.forget(node_id)
        for block_hash, tier in entries:
            self.store(node_id, tier, (block_hash,))

    def forget(self, node_id: str) -> None:
        """The node is gone. Costs a pass over the whole index."""
        held = [h for h, holders in self._holders.items() if any(node == node_id for node, _ in holders)]
        for block_hash in held:
            self._update(block_hash, node_id, drop=-1)

    def match(self, hashes: Sequence[bytes]) -> Mapping[str, PrefixMatch]:
        """For each node that holds the first block, how far it holds the run of `hashes` without a hole."""
        found = list(map(self._holders.get, hashes))
        held = found if all(found) else found[: found.index(None)]  # a hash that is known has holders
        tiers: dict[str, list[Tier]] = {}
        depth = 0
        for holders, length in _runs(held):
            is_longer = False
            for node_id, mask in holders or ():
                run = tiers.setdefault(node_id, []) if depth == 0 else tiers.get(node_id)
                if run is not None and len(run) == depth:
                    run += [_nearest(mask)] * length
                    is_longer = True
            if not is_longer:
                break
            depth += length
        self._note_matched(hashes[:depth])
        return {node_id: PrefixMatch(tuple(run)) for node_id, run in tiers.items()}

    def _note_matched(self, run: Sequence[bytes]) -> None:
        """Remembers to touch these. Of more than are forgotten at once, those matched longest ago are left."""
        if not run:
            return
        self._matched_count += len(run) - len(self._matched.pop(run[-1], ()))
        self._matched[run[-1]] = run
        while self._matched_count > max(len(run), self._capacity // _FORGOTTEN_AT_ONCE):
            self._matched_count -= len(self._matched.pop(next(iter(self._matched))))

    def _forget_oldest(self, count: int) -> None:
        for run in self._matched.values():
            self._touch(run)
        self._matched.clear()
        self._matched_count = 0
        for block_hash in list(islice(self._holders, count)):
            del self._holders[block_hash]

    def _touch(self, hashes: Sequence[bytes]) -> None:
        """Puts those that are held where those used last are, the first of them last."""
        for block_hash in reversed(hashes):
            holders = self._holders.pop(block_hash, None)
            if holders is not None:
                self._holders[block_hash] = holders

    def _update(self, block_hash: bytes, node_id: str, drop: int) -> None:
        """Takes tiers of one node from a hash that is held, and forgets a block nobody holds."""
        holders = self._changed(self._holders[block_hash], node_id, add=0, drop=drop)
        if holders:
            self._holders[block_hash] = holders
        else:
            del self._holders[block_hash]

    def _changed(self, old: _Holders, node_id: str, add: int, drop: int) -> _Holders:
        mask = next((m for node, m in old if node == node_id), 0)
        mask = (mask & ~drop) | add
        others = tuple(holder for holder in old if holder[0] != node_id)
        return self._share((*others, (node_id, mask)) if mask else others)

    def _share(self, holders: _Holders) -> _Holders:
        if len(self._shared) > 4096:
            self._shared.clear()
        return self._shared.setdefault(holders, holders)


def _runs(held: Sequence[_Holders | None]) -> Iterable[tuple[_Holders | None, int]]:
    """Holders with how many blocks in a row they hold."""
    if held and held.count(held[0]) == len(
        held
    ):  # a prompt of one node, mostly: eight times as fast as looking for runs
        return ((held[0], len(held)),)
    return ((holders, sum(1 for _ in same)) for holders, same in groupby(held))


def _nearest(mask: int) -> Tier:
    return _TIERS[(mask & -mask).bit_length() - 1]
