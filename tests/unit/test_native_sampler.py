"""The native sampler: the token that numpy's gives, on every instruction set, from logits of every kind."""

import ctypes

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.engine.draw import draw_of
from forebay.engine.native_draws import NativeDraws
from forebay.engine.sampler import choose
from forebay.engine.types import SamplingParams, Sequence
from forebay.kernels.cpu.instruction_set import supported_sets
from forebay.kernels.cpu.library import load_library

drawn = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = [1, 2, 5, 15, 16, 17, 63, 64, 65, 79, 129, 300, 1000, 1023, 4999]


@pytest.fixture(scope="module", params=[one.value for one in supported_sets()])
def functions(request):
    wanted = next(one for one in supported_sets() if one.value == request.param)
    return load_library(wanted).functions


def sequence(prompt=(), output=(), **sampling):
    params = SamplingParams(**{"max_tokens": 10, "seed": 0, **sampling})
    return Sequence("s", list(prompt), params, [], output_token_ids=list(output))


def chosen(functions, logits, one):
    """The native token, None for logits that are not finite; behind the vocabulary there are NaNs."""
    padded = np.full(-(-len(logits) // 16) * 16, np.nan, np.float32)
    padded[: len(logits)] = logits
    before = padded.copy()
    draws, token = NativeDraws([draw_of(one)]), ctypes.c_int32(-1)
    address = ctypes.c_void_p(padded.ctypes.data)
    failed = functions.forebay_choose(address, len(logits), ctypes.c_void_p(draws.address), ctypes.byref(token))
    np.testing.assert_array_equal(padded, before)
    return None if failed else token.value


def logits_of(kind, size, scale, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(scale=scale, size=size)
    if kind == "ties":
        logits = np.round(logits)
    if kind == "spikes":
        logits[random.integers(0, size, 3)] += 20 * scale
    if kind == "banned":
        logits[random.random(size) < 0.9] = -3e38
    if kind == "flat":
        logits[:] = scale
    return logits.astype(np.float32)


sampling_params = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**64 - 1),
        "temperature": st.sampled_from([0.0, 1e-45, 1e-300, 0.01, 0.7, 1.0, 3.0, 1e30]),
        "top_p": st.sampled_from([0.0, 1e-6, 0.3, 0.9, 0.999, 1 - 1e-12, 1.0, 1.0]),
        "top_k": st.sampled_from([0, 0, 1, 2, 17, 40, 200, 10**6]),
        "min_p": st.sampled_from([0.0, 0.0, 1e-9, 0.05, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.5, 1e-44, 3e38]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 2.0, -1.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.3]),
    }
)


@drawn
@given(
    logits=st.builds(
        logits_of,
        st.sampled_from(["random", "ties", "spikes", "banned", "flat"]),
        st.sampled_from(SIZES),
        st.sampled_from([0.0, 1e-3, 1.0, 4.0, 1e4]),
        st.integers(0, 2**16),
    ),
    sampling=sampling_params,
    prompt=st.lists(st.integers(0, 2**16), max_size=30),
    output=st.lists(st.integers(0, 2**16), max_size=30),
)
def test_native_and_numpy_choose_the_same_token(functions, logits, sampling, prompt, output):
    prompt, output = ([token_id % len(logits) for token_id in ids] for ids in (prompt, output))
    one = sequence(prompt, output, **sampling)

    assert chosen(functions, logits, one) == choose(logits, draw_of(one))


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}, {"top_p": 0.9999}, {"top_k": 40, "top_p": 0.5}])
def test_they_do_so_over_a_whole_vocabulary_too(functions, sampling):
    for seed in range(12):
        logits = logits_of(("random", "spikes")[seed % 2], 49_152, (0.1, 1.0, 3.0)[seed % 3], seed)
        one = sequence(seed=seed, **sampling)

        assert chosen(functions, logits, one) == choose(logits, draw_of(one))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_the_largest_is_found_wherever_it_is(functions, size, temperature):
    for best in {0, size // 2, size - 1}:
        logits = np.zeros(size, np.float32)
        logits[best] = 1

        assert chosen(functions, logits, sequence(temperature=temperature)) == best


@pytest.mark.parametrize("size", SIZES)
def test_of_equals_the_lowest_is_taken(functions, size):
    logits = np.zeros(size, np.float32)
    assert chosen(functions, logits, sequence(temperature=0.0)) == 0

    logits[size // 3 :: 2] = 7
    for sampling in ({"temperature": 0.0}, {"top_p": 0.0}):
        assert chosen(functions, logits, sequence(**sampling)) == size // 3


def test_a_nucleus_that_is_reached_exactly_ends_there(functions):
    logits = np.zeros(4, np.float32)

    found = {chosen(functions, logits, sequence(seed=seed, top_p=0.5)) for seed in range(40)}

    assert found == {choose(logits, draw_of(sequence(seed=seed, top_p=0.5))) for seed in range(40)} == {0, 1}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_no_number_that_is_not_finite_is_overlooked(functions, size, poison):
    for place in {0, size // 2, size - 1}:
        logits = logits_of("random", size, 1.0, place)
        logits[place] = poison

        assert chosen(functions, logits, sequence()) is None
