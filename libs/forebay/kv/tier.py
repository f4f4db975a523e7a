"""The tiers in which a node keeps blocks."""

from enum import Enum


class Tier(Enum):
    """Where a block lies, nearest to the kernels first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    REMOTE = "remote"
