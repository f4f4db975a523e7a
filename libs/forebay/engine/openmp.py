"""How idle OpenMP threads behave. Must be said before torch is loaded: the library reads it once."""

import os

SPIN_COUNT = 5000
"""Rounds of a spinning thread, some ten microseconds: it is still awake when the next operation of the step comes."""


def spin_briefly() -> None:
    """Idle threads spin for a moment, then sleep.

    Those that never sleep ruin every other process on the cores; those that sleep at once cost a step more than a
    second thread gains (measured with two threads on two cores, batch 1: 28 tokens/s asleep at once, 47 with a brief
    spin, 36 with one thread). What the operator has set in the environment stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
