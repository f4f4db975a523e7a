"""Frames of PullBlocks as the protobuf messages they are, without handing their bytes to protobuf.

A `PullBlocksResponse` with a `PulledFrame` whose `data` comes last is a few header bytes followed by the raw
bytes. Reads fields in any order, and skips unknown ones, since other implementations may write them so.
"""

from typing import Final

from forebay.errors import BadFrameError
from forebay.kv.pull_frame import Frame

DIGEST_BYTES: Final = 16

_MOST_FIELDS: Final = 64
_FRAME = 2  # in PullBlocksResponse
_BLOCK_INDEX, _OFFSET, _DIGEST, _DATA = 1, 2, 3, 4  # in PulledFrame
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


def frame_header(frame: Frame) -> bytes:
    """All of the message that goes before the frame's raw bytes."""
    fields = b""
    if frame.block_index:
        fields += bytes((_BLOCK_INDEX << 3 | _VARINT,)) + _varint(frame.block_index)
    if frame.offset_bytes:
        fields += bytes((_OFFSET << 3 | _VARINT,)) + _varint(frame.offset_bytes)
    if frame.block_digest is not None:
        fields += bytes((_DIGEST << 3 | _DELIMITED, DIGEST_BYTES)) + frame.block_digest
    fields += bytes((_DATA << 3 | _DELIMITED,)) + _varint(frame.length_bytes)
    return bytes((_FRAME << 3 | _DELIMITED,)) + _varint(len(fields) + frame.length_bytes) + fields


def frame_of(message: bytes) -> tuple[Frame, memoryview] | None:
    """The frame in a `PullBlocksResponse`, and where in the message its bytes are; None: it holds no frame.

    Raises:
        BadFrameError: it is no protobuf message, or a digest has the wrong length.
    """
    outer = _fields(memoryview(message))
    frame = outer.get(_FRAME)
    if frame is None:
        return None
    fields = _fields(_bytes_in(frame))
    data = _bytes_in(fields.get(_DATA, memoryview(b"")))
    digest = fields.get(_DIGEST)
    if digest is not None and len(_bytes_in(digest)) != DIGEST_BYTES:
        raise BadFrameError(f"a block's digest must have {DIGEST_BYTES} bytes")
    return (
        Frame(
            block_index=_number_in(fields.get(_BLOCK_INDEX, 0)),
            offset_bytes=_number_in(fields.get(_OFFSET, 0)),
            length_bytes=len(data),
            block_digest=None if digest is None else bytes(_bytes_in(digest)),
        ),
        data,
    )


def _fields(message: memoryview) -> dict[int, int | memoryview]:
    """The last value of each field. Errors: BadFrameError, also when there are more than any version has."""
    fields: dict[int, int | memoryview] = {}
    at = count = 0
    while at < len(message):
        count += 1
        if count > _MOST_FIELDS:
            raise BadFrameError(f"a frame's message has more than {_MOST_FIELDS} fields")
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            fields[number], at = _read_varint(message, at)
            continue
        length, at = _length(message, at, kind)
        if at + length > len(message):
            raise BadFrameError("a frame's message is cut off")
        fields[number] = message[at : at + length]
        at += length
    return fields


def _length(message: memoryview, at: int, kind: int) -> tuple[int, int]:
    if kind == _DELIMITED:
        return _read_varint(message, at)
    if kind in (_FIXED64, _FIXED32):
        return (8 if kind == _FIXED64 else 4), at
    raise BadFrameError("a frame's message has a field of unknown kind")


def _bytes_in(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise BadFrameError("a frame's message has a number where bytes belong")
    return value


def _number_in(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise BadFrameError("a frame's message has bytes where a number belongs")
    return value


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise BadFrameError("a frame's message is cut off")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
