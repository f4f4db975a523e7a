"""Replays a trace: through the real tiered store, block by block through a policy alone, and with the future known."""

import heapq
from collections.abc import Sequence

from forebay.kv.effect_log import EffectLog
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.tiered_store import StoreSettings, TieredStore
from scripts.benchmarks.kv_trace import Trace

Hits = list[int]
"""Of every request, the blocks found from its first on without a hole."""


def replay_store(trace: Trace, capacity: int, new_policy: NewPolicy) -> Hits:
    """One request after the other reserves, seals and gives back its blocks, as the KV-cache service has it."""
    store = TieredStore(StoreSettings(capacity, new_policy=new_policy))
    hits: Hits = []
    for hashes in trace:
        log = EffectLog()
        reserved = store.reserve(hashes, len(hashes), log)
        hits.append(reserved.cached_count)
        store.seal(reserved.block_ids[reserved.cached_count :], hashes[reserved.cached_count :], log)
        store.give_back(reserved.block_ids, len(hashes))
    return hits


def replay_singly(trace: Trace, capacity: int, new_policy: NewPolicy) -> Hits:
    """As published figures are computed: every block by itself, first block first; nothing is in use for longer."""
    policy = new_policy(capacity)
    block_of: dict[bytes, int] = {}
    hash_of: dict[int, bytes] = {}
    hits: Hits = []
    for hashes in trace:
        hits.append(next((depth for depth, each in enumerate(hashes) if each not in block_of), len(hashes)))
        for each in hashes:
            block = block_of.get(each)
            if block is not None:
                policy.use(block)
            else:
                block = len(block_of)
                if block == capacity:
                    (block,) = policy.coldest(1)
                    policy.drop(block, hash_of[block])
                    del block_of[hash_of[block]]
                block_of[each], hash_of[block] = block, each
                policy.enter(block, each)
            policy.admit([block])
    return hits


def replay_future(trace: Trace, capacity: int) -> Hits:
    """The most blocks that any policy can find, with the whole trace known (Belady's MIN; a block may be kept or not).

    Keeping what is used soonest again gives the most hits of single blocks, which no policy can exceed that counts only
    hits without a hole. It reaches just that: a block is used whenever one after it in its prefix is, so that its next
    use is never later; with equal next uses the later block goes first, beginnings outlast their ends, and no hit lies
    behind a hole. A real pool can reach a little less, since a running request's blocks must all have room.
    """
    next_uses = _next_uses(trace)
    next_use_of: dict[bytes, tuple[int, int]] = {}  # with the depth, of the blocks that are kept
    latest: list[tuple[int, int, bytes]] = []
    hits: Hits = []
    for hashes, uses in zip(trace, next_uses, strict=True):
        hits.append(sum(each in next_use_of for each in hashes))
        for depth, (each, use) in enumerate(zip(hashes, uses, strict=True)):
            next_use_of.pop(each, None)
            if use is not None:
                next_use_of[each] = (use, depth)
                heapq.heappush(latest, (-use, -depth, each))
        while len(next_use_of) > capacity:
            use, depth, each = heapq.heappop(latest)
            if next_use_of.get(each) == (-use, -depth):
                del next_use_of[each]
    return hits


def _next_uses(trace: Trace) -> list[Sequence[int | None]]:
    """Of every block of every request, the number of the next request that has it."""
    last: dict[bytes, int] = {}
    uses: list[Sequence[int | None]] = []
    for number in range(len(trace) - 1, -1, -1):
        uses.append([last.get(each) for each in trace[number]])
        last.update(dict.fromkeys(trace[number], number))
    return uses[::-1]
