"""How many of a real trace's blocks each eviction policy finds, beside the published rates and what is possible at all.

Share of all blocks asked for that are found in a prefix without a hole, in Mooncake's conversation trace (12,031
requests, 288,500 blocks), through the real tiered store. LRU is also replayed as the published rates are computed, and
equals them to three decimals but for 1,000 blocks: 0.04447 is 0.044, or 0.045 by way of 0.0445. No policy can find more
than with the future known. Ours is the same at every capacity; the halves of the trace are shown by themselves, since
its constants were chosen while looking at this trace.

Example:
  scripts/bench hit_rates --trace conversation_trace.jsonl.gz      some 30 s
"""

from collections.abc import Mapping, Sequence
from typing import Final

from forebay.kv.eviction.least_frequently_used import LeastFrequentlyUsed
from forebay.kv.eviction.least_recently_used import LeastRecentlyUsed
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.eviction.reuse_rate import LowestReuseRate
from forebay.kv.eviction.s3_fifo import S3Fifo
from scripts.benchmarks.kv_replay import Hits, replay_future, replay_singly, replay_store
from scripts.benchmarks.kv_trace import Trace, read_trace
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, report

_CAPACITIES: Final = (1_000, 6_000, 10_000, 30_000, 50_000)
_PUBLISHED_LRU: Final = (0.045, 0.139, 0.211, 0.326, 0.355)
_PUBLISHED_S3_FIFO: Final = (0.057, 0.157, 0.198, 0.304, 0.349)
_LRU, _LFU, _S3_FIFO, _OURS, _FUTURE = "LRU", "LFU", "S3-FIFO", "reuse rate", "future known"
_POLICIES: Final[Mapping[str, NewPolicy]] = {
    _LRU: LeastRecentlyUsed,
    _LFU: LeastFrequentlyUsed,
    _S3_FIFO: S3Fifo,
    _OURS: LowestReuseRate,
}


def run(options: Options) -> None:
    """Everything is deterministic: one round."""
    trace = read_trace(options.trace)
    figures = [Figure("unbounded", _rate(replay_future(trace, sum(map(len, trace))), trace), "of blocks")]
    for capacity, published_lru, published_s3 in zip(_CAPACITIES, _PUBLISHED_LRU, _PUBLISHED_S3_FIFO, strict=True):
        figures += _published(trace, capacity, published_lru)
        hits = {name: replay_store(trace, capacity, policy) for name, policy in _POLICIES.items()}
        hits[_FUTURE] = replay_future(trace, capacity)
        figures += [
            Figure(f"{capacity:,} blocks, {name}", _rate(each, trace), "of blocks") for name, each in hits.items()
        ]
        figures += _margins(trace, capacity, hits, max(published_lru, published_s3))
    report("hit_rates", figures)


def _published(trace: Trace, capacity: int, published: float) -> list[Figure]:
    ours = round(_rate(replay_singly(trace, capacity, LeastRecentlyUsed), trace), 3)
    name = f"{capacity:,} blocks, LRU block by block: difference from the published rate"
    return [Figure(name, abs(ours - published), "of blocks", "<= 0", f"{published}")]


def _margins(trace: Trace, capacity: int, hits: Mapping[str, Hits], published: float) -> list[Figure]:
    """What ours finds beyond the better of LRU and S3-FIFO: of the whole trace, and of each half."""
    half = len(trace) // 2
    parts = {"": slice(None), ", first half": slice(half), ", second half": slice(half, None)}
    figures = []
    for part, requests in parts.items():
        rates = {name: _rate(each[requests], trace[requests]) for name, each in hits.items()}
        best = max(rates[_LRU], rates[_S3_FIFO], 0.0 if part else published)
        target = None if part == ", first half" else ">= 0"
        peer = "LRU, S3-FIFO" if part else "LRU, S3-FIFO, published rates of both"
        figures.append(
            Figure(f"{capacity:,} blocks{part}, ours beyond", rates[_OURS] - best, "of blocks", target, peer)
        )
    return figures


def _rate(hits: Sequence[int], trace: Trace) -> float:
    return sum(hits) / sum(map(len, trace))
