"""Token streams: the same text however the tokens are cut, whole characters only, and stop strings met exactly."""

from codecs import getincrementaldecoder
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from forebay.errors import InvalidFieldError, TokenOutOfRangeError
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.tokenizer.build import build_tokenizer
from forebay.tokenizer.detokenizer import Delta, TokenStream, TokenStreamOptions
from forebay.tokenizer.open_streams import OpenStreams
from forebay.tokenizer.vocabulary import Vocabulary, read_vocabulary

REPLACEMENT = "\ufffd"


@cache
def real() -> tuple[Tokenizer, Vocabulary]:
    model = open_model(resolve_model(None))
    tokenizer = build_tokenizer(model.tokenizer_source)
    return tokenizer, read_vocabulary(model.path, tokenizer, model.config.vocabulary_size)


def bytes_vocabulary() -> Vocabulary:
    """Token id = byte."""
    pieces = tuple(bytes([byte]) for byte in range(256))
    return Vocabulary(pieces, pieces)


def words_vocabulary(*words: str) -> Vocabulary:
    pieces = tuple(word.encode() for word in words)
    return Vocabulary(pieces, pieces)


def is_cut(text: bytes) -> bool:
    """Whether the bytes end within a character."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return bool(decoder.getstate()[0])


def text_of(stream: TokenStream, pushes: list[list[int]]) -> tuple[str, str | None]:
    """All text of a stream, and the stop string it ended at."""
    text = ""
    for tokens in pushes:
        delta = stream.push(tokens)
        text += delta.text
        if delta.stop_match is not None:
            return text, delta.stop_match
    return text + stream.finish().text, None


def cut(draw: st.DrawFn, tokens: list[int]) -> list[list[int]]:
    places = sorted(draw(st.lists(st.integers(0, len(tokens)), max_size=8)))
    return [tokens[start:end] for start, end in zip([0, *places], [*places, len(tokens)], strict=True)]


@st.composite
def real_token_pushes(draw: st.DrawFn) -> list[list[int]]:
    """Tokens of some text, or any tokens at all, cut anywhere."""
    tokenizer, vocabulary = real()
    of_text = st.text(max_size=60).map(lambda text: tokenizer.encode(text).ids)
    tokens = draw(st.one_of(of_text, st.lists(st.integers(0, len(vocabulary) - 1), max_size=40)))
    return cut(draw, tokens)


@given(pushes=real_token_pushes(), keeps=st.booleans())
def test_any_cut_gives_the_text_of_the_whole(pushes: list[list[int]], keeps: bool) -> None:
    tokenizer, vocabulary = real()
    tokens = [token for push in pushes for token in push]
    expected = tokenizer.decode(tokens, skip_special_tokens=not keeps)
    pieces = vocabulary.pieces if keeps else vocabulary.visible_pieces

    text, _ = text_of(TokenStream(TokenStreamOptions(keep_special_tokens=keeps), vocabulary), pushes)

    assert text == (expected.removesuffix(REPLACEMENT) if is_cut(b"".join(pieces[one] for one in tokens)) else expected)


@given(text=st.text(max_size=8), last=st.characters(min_codepoint=128, exclude_categories=["Cs"]), data=st.data())
def test_the_end_never_shows_half_a_character(text: str, last: str, data: st.DataObject) -> None:
    half = last.encode()[: data.draw(st.integers(0, len(last.encode()) - 1))]
    pushes = data.draw(st.composite(cut)(list(text.encode() + half)))

    assert text_of(TokenStream(TokenStreamOptions(), bytes_vocabulary()), pushes) == (text, None)
    assert text_of(TokenStream(TokenStreamOptions(("no such stop",)), bytes_vocabulary()), pushes) == (text, None)


@given(text=st.text(max_size=40), data=st.data())
def test_no_delta_ends_inside_a_character(text: str, data: st.DataObject) -> None:
    pushes = data.draw(st.composite(cut)(list(text.encode())))
    stream = TokenStream(TokenStreamOptions(), bytes_vocabulary())

    deltas = [stream.push(tokens).text for tokens in pushes]

    assert "".join(deltas) == text
    assert stream.finish().text == ""


SMALL = st.text("ab€😀\n", max_size=14)
STOPS = st.lists(st.text("ab€😀\n", min_size=1, max_size=4), min_size=1, max_size=4)


@given(text=SMALL, stop=st.text("ab€😀\n", min_size=1, max_size=4), data=st.data())
def test_one_stop_string_ends_the_text_before_it(text: str, stop: str, data: st.DataObject) -> None:
    pushes = data.draw(st.composite(cut)(list(text.encode())))

    found = text_of(TokenStream(TokenStreamOptions((stop,)), bytes_vocabulary()), pushes)

    assert found == (text.split(stop, maxsplit=1)[0], stop if stop in text else None)


@given(text=SMALL, stops=STOPS, data=st.data())
def test_cuts_do_not_change_which_stop_is_met(text: str, stops: list[str], data: st.DataObject) -> None:
    options, tokens = TokenStreamOptions(tuple(stops)), list(text.encode())
    pushes = data.draw(st.composite(cut)(tokens))

    at_once = text_of(TokenStream(options, bytes_vocabulary()), [tokens])

    assert text_of(TokenStream(options, bytes_vocabulary()), pushes) == at_once
    assert (at_once[1] is not None) == any(stop in text for stop in stops)


@given(text=SMALL, stops=STOPS)
def test_only_what_may_begin_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    stream, emitted = TokenStream(TokenStreamOptions(tuple(stops)), bytes_vocabulary()), ""
    for end, character in enumerate(text, 1):
        delta = stream.push(list(character.encode()))
        emitted += delta.text
        if delta.stop_match is not None:
            return
        held = text[len(emitted) : end]
        begins = [text[start:end] for start in range(end) if any(stop.startswith(text[start:end]) for stop in stops)]
        assert held == max(begins, key=len, default="")


@given(pushes=real_token_pushes(), data=st.data())
def test_stop_token_count_is_the_first_token_that_completes_it(pushes: list[list[int]], data: st.DataObject) -> None:
    tokenizer, vocabulary = real()
    tokens = [token for push in pushes for token in push]
    text = tokenizer.decode(tokens)
    start = data.draw(st.integers(0, max(len(text) - 1, 0)))
    stop = text[start : start + data.draw(st.integers(1, 5))]
    if not stop or REPLACEMENT in stop:
        return
    shortest = next(count for count in range(len(tokens) + 1) if stop in tokenizer.decode(tokens[:count]))

    delta = TokenStream(TokenStreamOptions((stop,)), vocabulary).push(tokens)

    assert delta == Delta(text.split(stop)[0], stop, shortest)


def test_stop_token_count_counts_within_one_push() -> None:
    stream = TokenStream(TokenStreamOptions(("cd",)), words_vocabulary("a", "bc", "d", "e"))

    assert stream.push([0, 1]) == Delta("ab")
    assert stream.push([2, 3]) == Delta("", "cd", 1)


def test_the_leftmost_stop_of_one_token_wins_then_the_first_given() -> None:
    vocabulary = words_vocabulary("xaby")

    assert TokenStream(TokenStreamOptions(("b", "a")), vocabulary).push([0]) == Delta("x", "a", 1)
    assert TokenStream(TokenStreamOptions(("ab", "a")), vocabulary).push([0]) == Delta("x", "ab", 1)


def test_a_false_start_is_released() -> None:
    stream = TokenStream(TokenStreamOptions(("aab",)), words_vocabulary("a", "b", "c"))

    assert [stream.push([token]).text for token in (0, 0, 0, 2)] == ["", "", "a", "aac"]


def test_what_is_held_comes_out_at_the_end() -> None:
    stream = TokenStream(TokenStreamOptions(("</s>",)), words_vocabulary("x</", "s"))

    assert stream.push([0, 1]) == Delta("x")
    assert stream.finish() == Delta("</s")


def test_bytes_that_are_no_character() -> None:
    stream = TokenStream(TokenStreamOptions(), bytes_vocabulary())

    assert stream.push([0xFF]).text == REPLACEMENT
    assert stream.push([0xF0, 0x9F]).text == ""
    assert stream.push([0x41]).text == REPLACEMENT + "A"
    assert stream.push([0xE2, 0x82]).text == ""
    assert stream.finish().text == ""


def test_tokens_count_whose_bytes_are_left_out() -> None:
    streams = OpenStreams(bytes_vocabulary())
    streams.open(1, TokenStreamOptions())

    assert streams.push(1, [0x41, 0xE2, 0x82], is_last=True) == Delta("A")
    assert len(streams) == 0


def test_sentencepiece_drops_one_first_space() -> None:
    pieces = (b" a", b"", b" b")
    stream = TokenStream(TokenStreamOptions(), Vocabulary(pieces, pieces, drops_first_space=True))

    assert [stream.push([token]).text for token in (1, 0, 2)] == ["", "a", " b"]


def test_special_tokens_are_skipped_unless_wanted() -> None:
    _, vocabulary = real()

    assert TokenStream(TokenStreamOptions(), vocabulary).push([1, 2]).text == ""
    assert TokenStream(TokenStreamOptions(("<|im_end|>",)), vocabulary).push([2]).stop_match is None
    kept = TokenStream(TokenStreamOptions(keep_special_tokens=True), vocabulary)
    assert kept.push([1, 2]).text == "<|im_start|><|im_end|>"


def test_open_streams_are_told_apart() -> None:
    streams = OpenStreams(words_vocabulary("a", "b"))
    streams.open(1, TokenStreamOptions())
    streams.open(2, TokenStreamOptions(("b",)))

    assert streams.push(1, [0, 1], is_last=False) == Delta("ab")
    assert streams.push(2, [0, 1], is_last=False) == Delta("a", "b", 2)
    assert len(streams) == 1
    assert streams.push(1, [0], is_last=True) == Delta("a")
    assert len(streams) == 0


def test_the_last_item_brings_what_was_held() -> None:
    streams = OpenStreams(words_vocabulary("a<", "b"))
    streams.open(1, TokenStreamOptions(("</",)))

    assert streams.push(1, [0], is_last=True) == Delta("a<")


def test_a_stopped_stream_swallows_what_was_under_way_and_can_be_opened_again() -> None:
    streams = OpenStreams(words_vocabulary("a", "b"))
    streams.open(1, TokenStreamOptions(("a",)))
    streams.push(1, [0], is_last=False)

    assert streams.push(1, [1], is_last=False) == Delta("")
    streams.open(1, TokenStreamOptions())
    assert streams.push(1, [1], is_last=True) == Delta("b")
    with pytest.raises(InvalidFieldError, match="not open"):
        streams.push(1, [1], is_last=False)


def test_rules_of_opening() -> None:
    streams = OpenStreams(words_vocabulary("a"))
    streams.open(1, TokenStreamOptions(("x" * 256,) * 16))

    with pytest.raises(InvalidFieldError, match="open already"):
        streams.open(1, TokenStreamOptions())
    with pytest.raises(InvalidFieldError, match="not open"):
        streams.push(2, [0], is_last=False)
    for stop in (("",), ("x" * 257,), ("x",) * 17):
        with pytest.raises(InvalidFieldError) as refusal:
            streams.open(3, TokenStreamOptions(stop))
        assert refusal.value.field == "items.open.stop"
    with pytest.raises(TokenOutOfRangeError) as out_of_range:
        streams.push(1, [0, 1], is_last=False)
    assert out_of_range.value.field == "items.token_ids"
