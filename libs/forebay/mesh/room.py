"""Whether the KV memory that a mesh asks for can be had: enough for a block, and not more than this machine has.

What is not asked for is the KV-cache service's to choose and to judge, as is everything at the moment it is taken.
"""

import os

from forebay.errors import StartError
from forebay.host.shared_memory import FOLDER, segments_of, taken_bytes
from forebay.mesh.spec import MeshSpec


def check_block_room(spec: MeshSpec, block_bytes: int) -> None:
    """Raises StartError if a tier that is asked for has no room for one block."""
    for flag, size_bytes in (
        ("--device-bytes", spec.device_bytes),
        ("--host-bytes", spec.host_bytes),
        ("--disk-bytes", spec.disk_bytes),
    ):
        if size_bytes and size_bytes < block_bytes:
            raise StartError(
                f"{flag} {size_bytes} has no room for one KV block of this model ({block_bytes} bytes); raise it"
            )


def check_room(spec: MeshSpec) -> None:
    """Raises StartError if both tiers together ask for more shared memory than is free."""
    wanted_bytes = (spec.device_bytes or 0) + (spec.host_bytes or 0)
    room = os.statvfs(FOLDER)
    left_behind_bytes = sum(taken_bytes(path) for path in segments_of(spec.node_id))  # is removed at the start
    free_bytes = room.f_bavail * room.f_frsize + left_behind_bytes
    if wanted_bytes > free_bytes:
        raise StartError(
            f"{FOLDER} has {free_bytes} bytes free, {wanted_bytes} are wanted; enlarge it, or lower --device-bytes or"
            " --host-bytes"
        )
