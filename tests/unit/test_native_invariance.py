"""Batch invariance: a sequence's logits are the same bits in any company, any chunks, any number of threads."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.engine.types import Slice
from forebay.kernels.cpu.library import load_library
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.testing.native_runs import EXACT, NativeSettings, native_run
from forebay.testing.tiny_models import write_tiny_model

load_library()  # before a test points FOREBAY_CACHE elsewhere: it is compiled into the cache that all runs share
VOCABULARY = 256  # of the tiny model; the real one has these ids too


@pytest.fixture(
    scope="module", params=[EXACT, NativeSettings(), NativeSettings(activation_bits=8, block_tokens=16)], ids=repr
)
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREBAY_CACHE", str(folder / "cache"))
        yield native_run(open_model(write_tiny_model(folder / "model")), 256, request.param)


@pytest.fixture(scope="module")
def smollm2():
    return native_run(open_model(resolve_model(None)), block_count=160)


def token_ids(count, seed):
    return random.Random(seed).choices(range(VOCABULARY), k=count)


def logits_alone(run, prompt):
    """Token by token, on one thread, in blocks full of NaN."""
    run.next_block = 1
    run.engine.use_threads(1)
    sequence = run.sequence(prompt[:1], room_tokens=len(prompt))
    for block in sequence.block_table:
        run.arena.fill(block, 0xFF)
    for length in range(1, len(prompt) + 1):
        sequence.prompt_token_ids = prompt[:length]
        logits = run.logits([Slice(sequence, 1)])
    return logits[0]


def logits_in_company(run, prompt, chunks, others, dice):
    """The same prompt on other blocks, cut into chunks, while sequences of the given lengths come and go."""
    run.next_block = 1
    company = [run.sequence(token_ids(length, seed=length)) for length in others]
    subject = run.sequence(prompt)
    while True:
        chunk = min(chunks.pop(0) if chunks else len(prompt), left(subject))
        slices = [Slice(subject, chunk), *(some_of(other, dice) for other in company if left(other))]
        dice.shuffle(slices)
        names = [part.sequence.sequence_id for part in slices if part.token_count == left(part.sequence)]
        logits = run.logits(slices)
        if not left(subject):
            return logits[names.index(subject.sequence_id)]


def left(sequence):
    return sequence.token_count - sequence.computed_tokens


def some_of(sequence, dice):
    return Slice(sequence, min(dice.choice([1, 1, 2, 13, 40]), left(sequence)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 300),
    chunks=st.lists(st.sampled_from([1, 2, 7, 16, 17, 32, 100]), max_size=12),
    others=st.lists(st.integers(1, 400), max_size=6),
    threads=st.sampled_from([1, 2]),
    dice=st.randoms(use_true_random=False),
)
def test_a_tiny_model_does_not_notice_its_company(tiny, length, chunks, others, threads, dice):
    prompt = token_ids(length, seed=length)
    alone = logits_alone(tiny, prompt)

    tiny.engine.use_threads(threads)
    np.testing.assert_array_equal(logits_in_company(tiny, prompt, chunks, others, dice), alone)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("length", "chunk", "others"),
    [(60, 1, [5, 90]), (100, 7, [40]), (100, 32, []), (300, 32, [130] * 20), (600, 512, []), (600, 512, [90, 700])],
)
def test_the_real_model_does_not_notice_its_company(smollm2, length, chunk, others, threads):
    prompt = token_ids(length, seed=length)
    alone = logits_alone(smollm2, prompt)

    smollm2.engine.use_threads(threads)
    found = logits_in_company(smollm2, prompt, [chunk] * length, others, random.Random(0))
    np.testing.assert_array_equal(found, alone)


def test_an_engine_may_be_told_to_use_more_threads_than_it_has(tiny):
    prompt = token_ids(20, seed=1)
    alone = logits_alone(tiny, prompt)

    for threads in (100, 0, 2):
        tiny.engine.use_threads(threads)
        tiny.next_block = 1
        np.testing.assert_array_equal(tiny.logits([Slice(tiny.sequence(prompt), 20)])[0], alone)
