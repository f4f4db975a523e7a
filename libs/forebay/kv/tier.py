"""The tiers in which a node keeps blocks."""

from enum import Enum
from typing import Final


class Tier(Enum):
    """Where a block lies, nearest to the kernels first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    REMOTE = "remote"


TIERS: Final = (Tier.DEVICE, Tier.HOST, Tier.DISK)
"""The tiers that a node keeps blocks in, nearest first."""
