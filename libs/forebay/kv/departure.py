"""Why a block left a node: what an operator must be able to tell apart."""

from enum import Enum


class Departure(Enum):
    """Not a move: afterwards the block lies in no tier of the node."""

    EVICTED = "for want of room"
    FLUSHED = "by command"
    LOST = "with a disk that failed, or damaged it"
