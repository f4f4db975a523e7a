"""What a native step does after its logits: every sequence gets the token that its own sampling asks for."""

import numpy as np
import pytest

from forebay.engine.draw import draw_of
from forebay.engine.native_arena import NativeArena
from forebay.engine.native_load import load_native_engine
from forebay.engine.sampler import choose, log_probabilities
from forebay.engine.types import SamplingParams, Slice
from forebay.errors import TokenOutOfRangeError
from forebay.kernels.cpu.library import load_library
from forebay.models.model_file import open_model
from forebay.testing.native_runs import NativeRun, native_run
from forebay.testing.tiny_models import TINY_LLAMA, write_tiny_model

load_library()  # before a test points FOREBAY_CACHE elsewhere: it is compiled into the cache that all runs share
VOCABULARY = 301  # neither whole vectors nor whole tiles
SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 100.0},
    {"temperature": 0.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
    {"temperature": 0.0, "logprobs": 3},
    {},
    {"logprobs": 0, "repetition_penalty": 1.5},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 2.0, "top_k": 9, "min_p": 0.01, "frequency_penalty": 0.5},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREBAY_CACHE", str(folder / "cache"))
        yield open_model(write_tiny_model(folder / "model", TINY_LLAMA | {"vocab_size": VOCABULARY}))


@pytest.fixture(scope="module")
def run(model):
    return native_run(model, block_count=64)


def params(seed, **sampling):
    return SamplingParams(**{"max_tokens": 10, "seed": seed} | sampling)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_each_row_of_a_step_gets_the_token_that_numpy_takes(run, step, threads):
    run.next_block = 1
    run.engine.use_threads(threads)
    prompts = [[(seed * 31 + 7 * place) % VOCABULARY for place in range(20 + seed)] for seed in range(24)]
    sequences = [
        run.sequence(prompt, 8, params(seed, **SAMPLINGS[seed % len(SAMPLINGS)])) for seed, prompt in enumerate(prompts)
    ]
    for _ in range(step):
        run.step([Slice(one, one.pending_tokens) for one in sequences])
    slices = [Slice(one, one.pending_tokens) for one in sequences]
    logits = run.engine.logits(slices).copy()

    outcomes = run.engine.step(slices)

    for row, one, outcome in zip(logits, sequences, outcomes, strict=True):
        assert outcome.token_id == choose(row, draw_of(one))
        count = one.sampling.logprobs
        assert outcome.logprobs == (None if count is None else log_probabilities(row, outcome.token_id, count))


def test_logits_are_raw_whatever_the_penalties(run):
    run.next_block = 1
    plain, penalized = run.sequence(range(20)), run.sequence(range(20), 0, params(1, repetition_penalty=5.0))

    logits = run.logits([Slice(plain, 20), Slice(penalized, 20)])

    np.testing.assert_array_equal(logits[0], logits[1])


def test_greedy_avoids_what_penalties_forbid(run):
    run.next_block = 1
    best = run.step([Slice(run.sequence(range(20)), 20)])[0].token_id
    repeated = run.sequence([best, *range(20)], 0, params(0, temperature=0.0, repetition_penalty=1e6))
    charged = run.sequence(range(20), 8, params(0, temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0))
    charged.output_token_ids = [best] * 8

    outcomes = run.engine.step([Slice(one, one.token_count) for one in (repeated, charged)])

    assert outcomes[0].token_id not in repeated.prompt_token_ids
    assert outcomes[1].token_id != best


def test_a_penalized_token_that_the_model_does_not_have_is_refused(run):
    run.next_block = 1
    cached = run.sequence([VOCABULARY, *range(20)], 0, params(0, repetition_penalty=2.0))
    cached.computed_tokens = 20

    with pytest.raises(TokenOutOfRangeError):
        run.step([Slice(cached, 1)])


def test_blocks_that_lie_apart_are_computed_alike_and_nothing_between_them_is_touched(model, run):
    layout, block_count, gap_bytes = run.arena.layout, 6, 192
    stride_bytes = layout.block_bytes + gap_bytes
    memory = bytearray(b"\xff" * (block_count * stride_bytes))
    arena = NativeArena(memory, layout, block_count, stride_bytes)
    apart = NativeRun(load_native_engine(model, arena, threads=2), arena)
    run.next_block = 1
    prompt = range(100)

    expected, found = (one.logits([Slice(one.sequence(prompt), 100)])[0] for one in (run, apart))

    np.testing.assert_array_equal(found, expected)
    blocks = np.frombuffer(memory, np.uint8).reshape(block_count, stride_bytes)
    assert (blocks[:, layout.block_bytes :] == 0xFF).all()
    is_used = [(block[: layout.block_bytes] != 0xFF).any() for block in blocks]
    assert is_used == [False, True, True, True, True, False]
