"""Tiers on the wire."""

from typing import Final

from forebay.errors import InvalidFieldError
from forebay.kv.tier import Tier
from forebay.v1 import common_pb2

_NUMBERS: Final = {
    Tier.DEVICE: common_pb2.KV_TIER_DEVICE,
    Tier.HOST: common_pb2.KV_TIER_HOST,
    Tier.DISK: common_pb2.KV_TIER_DISK,
    Tier.REMOTE: common_pb2.KV_TIER_REMOTE,
}
_TIER_OF: Final = {number: tier for tier, number in _NUMBERS.items()}


def tier_to_proto(tier: Tier) -> "common_pb2.KvTier.ValueType":
    """The tier's number."""
    return _NUMBERS[tier]


def tier_from_proto(number: "common_pb2.KvTier.ValueType") -> Tier:
    """The tier of a number. Raises InvalidFieldError for one that is not known."""
    if number not in _TIER_OF:
        raise InvalidFieldError(f"tier {number} is not known", field="tier")
    return _TIER_OF[number]
