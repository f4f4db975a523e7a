"""Frames written beside protobuf are what protobuf writes and reads."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import BadFrameError
from forebay.kv.pull_frame import Frame
from forebay.v1 import pull_pb2
from forebay.wire.pull_frame import frame_header, frame_of

frames = st.builds(
    Frame,
    block_index=st.integers(0, 2**32 - 1),
    offset_bytes=st.integers(0, 2**64 - 1),
    length_bytes=st.integers(1, 300),
    block_digest=st.none() | st.binary(min_size=16, max_size=16),
)


def as_protobuf(frame: Frame, data: bytes) -> pull_pb2.PullBlocksResponse:
    return pull_pb2.PullBlocksResponse(
        frame=pull_pb2.PulledFrame(
            block_index=frame.block_index,
            offset_bytes=frame.offset_bytes,
            block_digest=frame.block_digest,
            data=data,
        )
    )


@given(frames, st.randoms())
def test_header_and_bytes_are_the_message(frame: Frame, source: random.Random) -> None:
    data = source.randbytes(frame.length_bytes)
    message = frame_header(frame) + data
    assert pull_pb2.PullBlocksResponse.FromString(message) == as_protobuf(frame, data)
    assert message == as_protobuf(frame, data).SerializeToString(deterministic=True)
    found = frame_of(message)
    assert found is not None
    assert (found[0], bytes(found[1])) == (frame, data)


@given(frames)
def test_a_message_cut_off_is_refused_or_shorter(frame: Frame) -> None:
    message = frame_header(frame) + bytes(frame.length_bytes)
    for length in range(1, len(message)):
        with pytest.raises(BadFrameError):
            frame_of(message[:length])


@given(st.binary(max_size=64))
def test_rubbish_is_refused_or_read_but_never_a_defect(message: bytes) -> None:
    try:
        frame_of(message)
    except BadFrameError:
        return


def test_other_orders_and_unknown_fields_are_read() -> None:
    digest = bytes(range(16))
    inner = (
        b"\x22\x03abc" + b"\x7a\x01x" + b"\x1a\x10" + digest + b"\x10\x05" + b"\x08\x07" + b"\x5d1234" + b"\x5112345678"
    )
    found = frame_of(b"\x12" + bytes((len(inner),)) + inner)
    assert found is not None
    assert found[0] == Frame(7, 5, 3, digest)
    assert bytes(found[1]) == b"abc"


def test_a_message_of_nothing_but_small_fields_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadFrameError, match="64 fields"):
        frame_of(b"\x08\x01" * 100)


def test_a_response_without_a_frame_holds_none() -> None:
    response = pull_pb2.PullBlocksResponse(data_connection=pull_pb2.DataConnection(port=1, ticket=b"t"))
    assert frame_of(response.SerializeToString()) is None
    assert frame_of(b"") is None


@pytest.mark.parametrize(
    "message", [b"\x10\x01", b"\x12\x02\x20\x01", b"\x12\x03\x0a\x01x", b"\x12\x03\x1a\x01x", b"\x13"]
)
def test_wrong_kinds_are_refused(message: bytes) -> None:
    with pytest.raises(BadFrameError):
        frame_of(message)
