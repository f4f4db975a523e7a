"""Whom a call is for: an address outlives the process that served there, whose successor knows nothing of its work."""

from typing import Final

ADDRESSEE_KEY: Final = "forebay-to"


def addressed_to(worker_id: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call that only this worker may answer; others refuse it with WORKER_LOST."""
    return ((ADDRESSEE_KEY, worker_id),)
