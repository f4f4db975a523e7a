"""Which node holds which sealed block in which tier, as far as this reader was told. Pure.

Knows hashes, not tokens. It may be wrong either way for a moment: the KV-cache service has the last word.

Memory: at most 190 bytes per block hash (the hash, and its place in a dictionary at its emptiest; holders are shared
tuples), whatever the number of nodes that hold it, so 50 MB at the default capacity. Beyond the capacity the hashes
used longest ago are forgotten, which costs a prefill that might have been saved, nothing else.

What was matched is put where those used last are only when hashes are to be forgotten: to move each of a long prompt's
hashes costs several times what finding them does, and most are matched again before that.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import is_not
from typing import Final, NamedTuple, cast

from forebay.kv.tier import Tier

DEFAULT_CAPACITY: Final = 262_144
_LOOKED_UP_FIRST: Final = 16
_FORGOTTEN_AT_ONCE: Final = 16  # one so-manieth of the capacity: finding the oldest hash passes over all gaps before it


class PrefixMatch(NamedTuple):
    """A run of blocks from a prompt's start that one node holds. tiers: the nearest of each."""

    block_count: int
    tiers: frozenset[Tier]


NO_MATCH: Final = PrefixMatch(0, frozenset())

# A node's id with its tiers as bits, of every node that holds a block. The lowest bit is the nearest tier.
_Holders = tuple[tuple[str, int], ...]
_TIERS: Final = tuple(Tier)
_BIT_OF: Final = {tier: 1 << place for place, tier in enumerate(_TIERS)}
_TIERS_OF: Final = [frozenset(tier for tier in _TIERS if bits & _BIT_OF[tier]) for bits in range(1 << len(_TIERS))]


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
        reached: dict[str, int] = {}
        tiers: dict[str, int] = {}
        depth = 0
        for holders, length in _runs(self._held_run(hashes)):
            is_longer = False
            for node_id, mask in holders:
                if reached.get(node_id, 0) == depth:
                    reached[node_id] = depth + length
                    tiers[node_id] = tiers.get(node_id, 0) | (mask & -mask)
                    is_longer = True
            if not is_longer:
                break
            depth += length
        self._note_matched(hashes[:depth])
        return {node_id: PrefixMatch(length, _TIERS_OF[tiers[node_id]]) for node_id, length in reached.items()}

    def _held_run(self, hashes: Sequence[bytes]) -> list[_Holders]:
        """Holders of one block after the other until nobody holds one. Looks some blocks further, not at all."""
        held: list[_Holders] = []
        size = _LOOKED_UP_FIRST
        while len(held) < len(hashes):
            found = list(map(self._holders.get, hashes[len(held) : len(held) + size]))
            if not all(found):  # a hash that is known has holders
                return held + cast("list[_Holders]", found[: found.index(None)])
            held += cast("list[_Holders]", found)
            size *= 4
        return held

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


def _runs(held: Sequence[_Holders]) -> Iterable[tuple[_Holders, int]]:
    """Holders with how many blocks in a row they hold."""
    is_last = bytes(map(is_not, held, held[1:])) + b"\1"
    place = 0
    while place < len(held):
        end = is_last.index(1, place) + 1
        yield held[place], end - place
        place = end
