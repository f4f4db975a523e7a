"""The eviction policies there are, by the names that operators give them."""

from collections.abc import Mapping
from typing import Final, Literal

from forebay.kv.eviction.least_frequently_used import LeastFrequentlyUsed
from forebay.kv.eviction.least_recently_used import LeastRecentlyUsed
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.eviction.reuse_rate import LowestReuseRate
from forebay.kv.eviction.s3_fifo import S3Fifo

PolicyName = Literal["reuse-rate", "lru", "lfu", "s3-fifo"]

DEFAULT_POLICY: Final[PolicyName] = "reuse-rate"
POLICIES: Final[Mapping[PolicyName, NewPolicy]] = {
    "reuse-rate": LowestReuseRate,
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "s3-fifo": S3Fifo,
}
