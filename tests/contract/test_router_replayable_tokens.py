"""Tokens on their way to text: once and in order, however they are cut up, and however often a tokenizer is lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.router.output import Output
from forebay.router.replayable_tokens import ReplayableTokens, Sent
from forebay.testing.scripted_workers import FakeTokenizer, Script
from forebay.v1 import common_pb2, tokenizer_pb2


class Sink:
    """Hears like a request does."""

    def __init__(self) -> None:
        self.text = ""
        self.token_count = 0
        self.stop_match: str | None = None
        self.end_count = 0

    def on_text(self, text: str, token_count: int, stop_match: str | None, is_last: bool) -> None:
        self.text += text
        self.token_count += token_count
        self.stop_match = stop_match
        self.end_count += is_last or stop_match is not None

    def on_text_failed(self, error: Exception) -> None:
        raise AssertionError from error


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=12), st.sampled_from(["", "b", "bc", "abc"]), st.data())
def test_text_and_tokens_come_once(whole: str, stop: str, data: st.DataObject) -> None:
    """A push, an exchange with the tokenizer, or its loss, in any order, perhaps behind what was delivered before."""
    sink, fake = Sink(), FakeTokenizer(Script())
    stream = ReplayableTokens(1, tokenizer_pb2.DetokenizeOptions(stop=[stop] if stop else []), sink)
    there: dict = {}  # type: ignore[type-arg]  # the tokenizer's streams
    under_way: tuple[tokenizer_pb2.DetokenizeItem, Sent] | None = None
    pushed = data.draw(st.integers(0, len(whole)))
    if pushed:
        options = tokenizer_pb2.DetokenizeOptions(stop=[stop] if stop else [])
        received = tokenizer_pb2.DetokenizeItem(stream_id=1, open=options, token_ids=map(ord, whole[:pushed]))
        delivered = fake._answer(received, {})
        sink.text, sink.token_count = delivered.text, delivered.stop_token_count or pushed
        pushed = sink.token_count
        stream.recall([ord(c) for c in whole[:pushed]], len(sink.text))
    is_complete = False
    while not stream.is_done:
        step = data.draw(st.sampled_from(["push", "send", "answer", "lose"])) if not is_complete else "drive"
        if step == "push":
            count = data.draw(st.integers(0, len(whole) - pushed))
            is_complete = pushed + count == len(whole)
            stream.push([ord(c) for c in whole[pushed : pushed + count]], is_last=is_complete)
            pushed += count
        if step in {"send", "drive"} and under_way is None and stream.has_unsent:
            under_way = stream.take()
        if step in {"answer", "drive"} and under_way is not None:
            item, sent = under_way
            under_way = None
            stream.on_answer(sent, fake._answer(item, there))
        if step == "lose" or (step == "drive" and not stream.is_done and data.draw(st.booleans())):
            there.clear()
            under_way = None
            stream.rewind()
    at = whole.find(stop) if stop else -1
    if at >= 0:
        assert (sink.text, sink.stop_match, sink.token_count) == (whole[:at], stop, at + len(stop))
    else:
        assert (sink.text, sink.stop_match, sink.token_count) == (whole, None, len(whole))
    assert sink.end_count == 1


@given(st.lists(st.integers(0, 3), max_size=20), st.data())
def test_chunks_carry_each_token_once_with_its_logprobs(counts: list[int], data: st.DataObject) -> None:
    output, chunks, certain = Output(), [], 0
    for index, count in enumerate(counts):
        ids = [100 * index + i for i in range(count)]
        probabilities = [common_pb2.TokenProbability(token_id=token_id) for token_id in ids]
        output.add_tokens(ids, [common_pb2.TokenLogprobs(chosen=chosen) for chosen in probabilities])
        now_certain = data.draw(st.integers(0, sum(counts[: index + 1]) - certain))
        output.add_text("x" * now_certain, now_certain, None, is_last=False)
        certain += now_certain
        if data.draw(st.booleans()) and (chunk := output.take_chunk()) is not None:
            chunks.append(chunk)
    if (chunk := output.take_chunk()) is not None:
        chunks.append(chunk)
    assert output.take_chunk() is None
    everything = [100 * index + i for index, count in enumerate(counts) for i in range(count)]
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == everything[:certain]
    assert [p.chosen.token_id for chunk in chunks for p in chunk.logprobs] == everything[:certain]
    assert "".join(chunk.text for chunk in chunks) == "x" * certain
    assert output.token_count == certain
