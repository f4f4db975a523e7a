"""Both sides of a pull, joined by a link that loses, reorders, repeats and corrupts: what must hold always holds."""

import random
from collections import deque
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from forebay.errors import BadFrameError, InvalidFieldError
from forebay.kv.pull_frame import MAX_CREDIT_BYTES, MAX_FRAME_BYTES, Frame
from forebay.kv.pull_sink import PullSink
from forebay.kv.pull_source import PullShape, PullSource

Sent = tuple[int, Frame, bytes]


class Stream:
    """One session's source and the frames on their way from it."""

    def __init__(self, blocks: list[bytes], first: int, credit_bytes: int) -> None:
        self.blocks = blocks
        self.source = PullSource(PullShape(len(blocks), len(blocks[0]), first), credit_bytes)
        self.granted_bytes, self.sent_bytes = credit_bytes, 0
        self.link: deque[tuple[Frame, bytes]] = deque()

    def seal(self) -> None:
        index = self.source.first_unsealed
        if index is not None:
            self.source.seal(xxh3_128_digest(self.blocks[index]))

    def send(self) -> bool:
        frame = self.source.next_frame()
        if frame is None:
            return False
        self.sent_bytes += frame.length_bytes
        assert self.sent_bytes <= self.granted_bytes
        assert 1 <= frame.length_bytes <= MAX_FRAME_BYTES
        self.link.append((frame, self.blocks[frame.block_index][frame.offset_bytes : frame.end_bytes]))
        return True


class Receiver:
    """The sink over plain memory; refuses what must never happen."""

    def __init__(self, blocks: list[bytes], window_bytes: int) -> None:
        self.blocks = blocks
        self.sink = PullSink(len(blocks), len(blocks[0]), window_bytes)
        self.memory = [bytearray(len(block)) for block in blocks]
        self.arrivals: list[int] = []

    def read(self, stream: Stream, frame: Frame, data: bytes) -> None:
        is_written = self.sink.place(frame)
        if is_written:
            assert frame.block_index not in self.arrivals  # never written again
            self.memory[frame.block_index][frame.offset_bytes : frame.end_bytes] = data
        settled = self.sink.settle(frame, is_written, lambda index: xxh3_128_digest(self.memory[index]))
        if settled.grant_bytes:
            stream.source.grant(settled.grant_bytes)
            stream.granted_bytes += settled.grant_bytes
        if settled.repeat is not None:
            stream.source.repeat(settled.repeat)
        if settled.arrived is not None:
            self.arrivals.append(settled.arrived)

    def check(self) -> None:
        assert len(self.arrivals) == len(set(self.arrivals))
        assert self.sink.arrived == set(self.arrivals)
        assert not self.sink.arrived & self.sink.failed
        for index in self.arrivals:
            assert self.memory[index] == self.blocks[index]
        missing = set(range(len(self.blocks))) - self.sink.arrived - self.sink.failed
        assert self.sink.first_missing == min(missing, default=None)
        assert self.sink.is_settled == (not missing)


def blocks_of(count: int, size_bytes: int, seed: int = 0) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(size_bytes) for _ in range(count)]


def corrupted(data: bytes) -> bytes:
    return bytes((data[0] ^ 1,)) + data[1:]


def long_walk(seed: int) -> list[int]:
    return random.Random(seed).choices(range(100), k=400)


# Long ones reach far; short ones Hypothesis can shorten further.
walks = st.integers(0, 2**32).map(long_walk) | st.lists(st.integers(0, 99), max_size=60)
sizes = st.tuples(st.integers(1, 8), st.integers(1, 40), st.integers(1, 64))


@given(sizes, walks, st.integers(1, 30))
@settings(max_examples=400, deadline=None)
def test_over_a_link_that_breaks_and_corrupts(
    size: tuple[int, int, int], actions: list[int], corrupt_percent: int
) -> None:
    count, block_bytes, window_bytes = size
    blocks = blocks_of(count, block_bytes)
    receiver = Receiver(blocks, window_bytes)
    receiver.sink.begin_session()
    stream = Stream(blocks, 0, window_bytes)
    for action in actions:
        if action < 25:
            stream.seal()
        elif action < 60:
            stream.send()
        elif action < 97 and stream.link:
            frame, data = stream.link.popleft()
            receiver.read(stream, frame, corrupted(data) if action - 60 < corrupt_percent else data)
        elif action >= 97 and receiver.sink.first_missing is not None:
            receiver.sink.begin_session()  # the link broke, with all that was on it
            stream = Stream(blocks, receiver.sink.first_missing, window_bytes)
        receiver.check()
    # The source dies now, or the link holds from now on: either way every block has arrived or is said to be missing.
    while not receiver.sink.is_settled:
        stream.seal()
        if not stream.send() and not stream.link:
            assert stream.source.first_unsealed is not None  # it never gets stuck on anything else
        if stream.link:
            receiver.read(stream, *stream.link.popleft())
        receiver.check()


@given(sizes, walks, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_frames_of_several_streams_in_any_order(
    size: tuple[int, int, int], actions: list[int], source: random.Random
) -> None:
    count, block_bytes, window_bytes = size[0], size[1], size[2] + 2
    blocks = blocks_of(count, block_bytes)
    receiver = Receiver(blocks, window_bytes)
    receiver.sink.begin_session()
    streams = [Stream(blocks, source.randrange(count), window_bytes // 2) for _ in range(2)]
    for action in actions:
        stream = streams[action % 2]
        if action < 30:
            stream.seal()
        elif action < 65:
            stream.send()
        elif stream.link:
            at = source.randrange(len(stream.link))  # even within a stream
            frame, data = stream.link[at]
            del stream.link[at]
            with suppress(InvalidFieldError):  # the one stream was asked to repeat what only the other has sent
                receiver.read(stream, frame, data)
        receiver.check()


def test_little_credit_at_first_does_not_make_all_frames_small() -> None:
    source = PullSource(PullShape(1, 4000), 2)
    source.seal(b"d" * 16)
    source.grant(2000)
    frame = source.next_frame()
    assert frame is not None
    assert frame.length_bytes == 1001


def test_a_block_begun_before_the_connection_broke_begins_anew() -> None:
    sink = PullSink(1, 8, 100)
    sink.begin_session()
    first, second = Frame(0, 0, 4), Frame(0, 4, 4, b"d" * 16)
    assert sink.place(first)
    sink.settle(first, True, lambda index: b"")
    sink.begin_session()
    assert not sink.place(second), "its first half may be of other bytes than were sent"


def test_a_block_corrupted_twice_fails_alone() -> None:
    blocks = blocks_of(3, 10)
    receiver, stream = Receiver(blocks, 100), Stream(blocks, 0, 100)
    receiver.sink.begin_session()
    for _ in blocks:
        stream.seal()
    asked: list[int] = []
    while stream.send() or stream.link:
        frame, data = stream.link.popleft()
        asked.append(frame.block_index)
        receiver.read(stream, frame, corrupted(data) if frame.block_index == 1 else data)
    assert asked.count(1) == 2
    assert receiver.sink.arrived == {0, 2}
    assert receiver.sink.failed == {1}
    assert receiver.sink.is_settled


def test_frames_wait_for_the_seal_and_for_credit() -> None:
    source = PullSource(PullShape(2, 10), 8)
    assert source.next_frame() is None
    assert source.first_unsealed == 0
    source.seal(b"d" * 16)
    assert [source.next_frame(), source.next_frame(), source.next_frame()] == [Frame(0, 0, 4), Frame(0, 4, 4), None]
    source.grant(2)
    assert source.next_frame() == Frame(0, 8, 2, b"d" * 16)
    assert (source.next_frame(), source.sent_block_count, source.first_unsealed) == (None, 1, 1)


def test_a_source_refuses_bad_credit_and_repeats() -> None:
    for credit_bytes in (0, -1, MAX_CREDIT_BYTES + 1):
        with pytest.raises(InvalidFieldError) as refused:
            PullSource(PullShape(1, 10), credit_bytes)
        assert refused.value.field == "credit_bytes"
    source = PullSource(PullShape(3, 10, first_block_index=1), 100)
    with pytest.raises(InvalidFieldError):
        source.grant(MAX_CREDIT_BYTES - 99)
    source.seal(b"")
    for index in (0, 1, 2, 3):
        with pytest.raises(InvalidFieldError):
            source.repeat(index)
    assert source.next_frame() is not None
    source.repeat(1)
    with pytest.raises(InvalidFieldError):
        source.repeat(1)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(2, 0, 5),
        Frame(0, 0, 0),
        Frame(0, 6, 5, b"d" * 16),
        Frame(0, 0, 10),
        Frame(0, 0, 5, b"d" * 16),
        Frame(0, 2**63, 1),
    ],
)
def test_frames_that_cannot_be_are_refused(frame: Frame) -> None:
    sink = PullSink(2, 10, 100)
    sink.begin_session()
    with pytest.raises(BadFrameError):
        sink.place(frame)


def test_frames_beyond_the_credit_are_refused() -> None:
    sink = PullSink(2, 10, 12)
    sink.begin_session()
    sink.place(Frame(0, 0, 10, b"d" * 16))
    with pytest.raises(BadFrameError):
        sink.place(Frame(1, 0, 10, b"d" * 16))
