"""A request's stored trace, once it is whole: spans reach the store a moment after they end."""

from pathlib import Path
from typing import Protocol

from forebay.telemetry.span_schema import store_path
from forebay.telemetry.span_store import SpanStore, StoredSpan, TraceNotFoundError
from forebay.testing.waiting import until


class KeepsSpans(Protocol):
    """A mesh, as far as traces care."""

    @property
    def state_dir(self) -> Path:
        """Where its processes keep their spans."""
        ...


async def stored_trace(mesh: KeepsSpans, trace_id: str, names: set[str]) -> list[StoredSpan]:
    """All spans of a trace as soon as those of these names are stored. Raises TimeoutError when they stay away."""
    trace: list[StoredSpan] = []

    def is_whole() -> bool:
        try:
            trace[:] = SpanStore(store_path(mesh.state_dir)).trace(trace_id)
        except TraceNotFoundError:
            return False
        return names <= {one.name for one in trace}

    await until(is_whole)
    return trace
