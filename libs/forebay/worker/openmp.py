"""How idle OpenMP threads behave. Must be said before torch is loaded: the library reads it once."""

import os


def sleep_when_idle() -> None:
    """Idle threads sleep instead of spinning: spinning ones of two workers on the same cores ruin each other.

    What the operator has set in the environment stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
