"""Frames on a data connection: a header of fixed size, then raw bytes. As DataConnection in pull.proto says."""

import struct
from typing import Final

from forebay.kv.pull_frame import Frame

TICKET_BYTES: Final = 32
HEADER: Final = struct.Struct("!IIQ16s")

_NO_DIGEST: Final = bytes(16)


def header_of(frame: Frame) -> bytes:
    """What goes before the frame's bytes."""
    return HEADER.pack(frame.block_index, frame.length_bytes, frame.offset_bytes, frame.block_digest or _NO_DIGEST)


def frame_of(header: bytes | bytearray, block_bytes: int) -> Frame:
    """The frame that a header announces. Whether it makes sense is for the pull to judge."""
    block_index, length_bytes, offset_bytes, digest = HEADER.unpack(header)
    is_last = offset_bytes + length_bytes == block_bytes
    return Frame(block_index, offset_bytes, length_bytes, digest if is_last else None)
