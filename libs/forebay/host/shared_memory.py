"""POSIX shared memory of this machine, and what Forebay's segments are called. Maps nothing."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory; not a temporary folder
_STAT_BLOCK_BYTES: Final = 512
CORES: Final = "cores"
"""What the page is called on which a node's workers share its cores, where tiers have their names."""
_INDEX: Final = "index"
_PARTS: Final = ("device", f"device-{_INDEX}", "host", f"host-{_INDEX}", CORES)


def segment_name(node_id: str, tier_name: str) -> str:
    """POSIX name of a tier's segment, which begins with a slash."""
    return f"/forebay-{node_id}-{tier_name}"


def index_name(segment: str) -> str:
    """POSIX name of the checkpoint beside a tier's segment."""
    return f"{segment}-{_INDEX}"


def segment_path(name: str) -> Path:
    """The file behind a POSIX name."""
    return FOLDER / name.removeprefix("/")


def segments_of(node_id: str) -> list[Path]:
    """Files of the node's shared memory: of `n`, none of a node `n-1` or `n-host`."""
    paths = (segment_path(segment_name(node_id, part)) for part in _PARTS)
    return [path for path in paths if path.exists()]


def remove_segments(node_id: str) -> int:
    """Removes the node's shared memory; returns how many files there were. No process of the node may run.

    The KV-cache service removes its own; this is for one that was killed.
    """
    segments = segments_of(node_id)
    for segment in segments:
        segment.unlink(missing_ok=True)
    return len(segments)


def taken_bytes(path: Path) -> int:
    """What the file takes of memory; nothing once it is removed."""
    try:
        return path.stat().st_blocks * _STAT_BLOCK_BYTES
    except FileNotFoundError:
        return 0
