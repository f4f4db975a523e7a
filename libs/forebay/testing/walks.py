"""How many random interleavings a test walks through: thousands on every change, a million when asked to."""

import os
from collections.abc import Iterator

FACTOR_VARIABLE = "FOREBAY_WALK_FACTOR"
"""So many times as many walks as usual. 100 makes a million of the KV rules, which takes an hour of one core."""


def seeds(count: int) -> Iterator[int]:
    """One for each walk, the same in every run."""
    return iter(range(count * int(os.environ.get(FACTOR_VARIABLE, "1"))))
