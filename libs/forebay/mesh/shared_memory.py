"""The shared memory of a node. The KV-cache service removes its own; this is for one that was killed."""

from pathlib import Path
from typing import Final

_FOLDER: Final = Path("/dev/shm")  # noqa: S108  # POSIX shared memory lives here


def segments_of(node_id: str) -> list[Path]:
    """Files of the node's shared memory."""
    return sorted(_FOLDER.glob(f"forebay-{node_id}-*"))


def remove_segments(node_id: str) -> int:
    """Removes the node's shared memory; returns how many files there were. No process of the node may run."""
    segments = segments_of(node_id)
    for segment in segments:
        segment.unlink(missing_ok=True)
    return len(segments)
