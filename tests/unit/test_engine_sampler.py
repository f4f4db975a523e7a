"""Sampling: filters, penalties, logprobs, and that a token depends on nothing but its own inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.engine.draw import POINT_BITS, draw_of, random_point
from forebay.engine.sampler import sample
from forebay.engine.token_weights import UNIT_BITS, weights
from forebay.engine.types import SamplingParams, Sequence
from forebay.errors import NumericFailureError

VOCABULARY = 50


def sequence(prompt=(), output=(), **sampling) -> Sequence:
    params = SamplingParams(**{"max_tokens": 10, "seed": 0, **sampling})
    return Sequence("s", list(prompt), params, [], output_token_ids=list(output))


def logits_of(probabilities) -> np.ndarray:
    return np.log(np.array([probabilities], dtype=np.float32))


def drawn(logits, count=400, output=(), **sampling) -> dict[int, int]:
    """How often each token was drawn with so many seeds."""
    counts: dict[int, int] = {}
    for seed in range(count):
        token_id = sample(logits, [sequence(output=output, **{"seed": seed, **sampling})])[0].token_id
        counts[token_id] = counts.get(token_id, 0) + 1
    return counts


def random_logits(seed, rows=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=(rows, VOCABULARY)).astype(np.float32)


def test_temperature_zero_takes_the_likeliest_and_the_lower_id_of_equals():
    logits = np.array([[0, 5, 5, 1], [3, 1, 0, 2]], dtype=np.float32)

    outcomes = sample(logits, [sequence(temperature=0.0), sequence(temperature=0.0)])

    assert [outcome.token_id for outcome in outcomes] == [1, 0]
    assert outcomes[0].logprobs is None


def test_draws_follow_the_probabilities():
    counts = drawn(logits_of([0.5, 0.3, 0.2]), count=4000)

    assert [counts[token_id] / 4000 for token_id in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_temperature_sharpens_and_flattens():
    logits = logits_of([0.6, 0.4])

    assert drawn(logits, temperature=0.05).get(1, 0) < 2
    assert drawn(logits, count=2000, temperature=50.0)[1] / 2000 == pytest.approx(0.5, abs=0.04)


def test_the_smallest_temperature_is_greedy_and_does_not_overflow():
    assert drawn(logits_of([0.4, 0.35, 0.25]), count=20, temperature=1e-300) == {0: 20}


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.0}, {0}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.41}, {0, 1}),
        ({"top_p": 0.75}, {0, 1, 2}),
        ({"min_p": 0.6}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.5}, {0, 1}),
        ({"min_p": 0.45, "top_p": 0.9}, {0, 1, 2}),
    ],
)
def test_filters_keep_exactly_the_tokens_they_should(sampling, kept):
    assert drawn(logits_of([0.4, 0.3, 0.2, 0.1]), **sampling).keys() == kept


def test_top_k_keeps_all_that_share_the_last_place():
    assert drawn(logits_of([0.4, 0.2, 0.2, 0.2]), top_k=2).keys() == {0, 1, 2, 3}


def test_top_p_counts_the_share_among_what_min_p_and_top_k_left():
    # Of 0.4 and 0.3 alone the first has a share of 0.57, so 0.5 is reached by it.
    assert drawn(logits_of([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.5).keys() == {0}


def test_filters_come_after_temperature():
    # At temperature 2, probabilities are nearer to each other: the ratio 0.5 becomes 0.707.
    assert drawn(logits_of([0.6, 0.3, 0.1]), min_p=0.6).keys() == {0}
    assert drawn(logits_of([0.6, 0.3, 0.1]), min_p=0.6, temperature=2.0).keys() == {0, 1}


@given(st.integers(0, 10**6), st.floats(0.01, 0.999))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(seed, top_p):
    logits = random_logits(seed)
    probabilities = np.exp(logits[0].astype(np.float64))
    order = np.argsort(-probabilities, kind="stable")
    needed = int(np.searchsorted(np.cumsum(probabilities[order]) / probabilities.sum(), top_p)) + 1

    ids = drawn(logits, count=30, top_p=top_p).keys()

    assert ids <= set(order[:needed].tolist())


def test_repetition_penalty_counts_prompt_and_output():
    logits = np.array([[2.0, 1.9, 1.8, -1.0]], dtype=np.float32)

    outcome = sample(logits, [sequence(prompt=[0], output=[1], temperature=0.0, repetition_penalty=1.2)])[0]

    assert outcome.token_id == 2


def test_repetition_penalty_lowers_negative_logits_too():
    logits = np.array([[-1.0, -1.1]], dtype=np.float32)

    assert sample(logits, [sequence(prompt=[0], temperature=0.0, repetition_penalty=1.5)])[0].token_id == 1


def test_presence_is_charged_once_and_frequency_per_use_of_the_output_only():
    logits = np.array([[3.0, 2.0, 1.4]], dtype=np.float32)
    used = {"prompt": [2, 2, 2], "output": [0, 0, 1]}

    def greedy(**penalties):
        return sample(logits, [sequence(temperature=0.0, **used, **penalties)])[0].token_id

    assert greedy() == 0
    assert greedy(presence_penalty=1.5) == 0  # 1.5, 0.5, 1.4
    assert greedy(presence_penalty=2.0) == 2  # 1.0, 0.0, 1.4
    assert greedy(frequency_penalty=0.75) == 0  # 1.5, 1.25, 1.4
    assert greedy(frequency_penalty=0.7, presence_penalty=0.3) == 2  # 1.3, 1.0, 1.4


def test_penalties_change_neither_the_logits_nor_the_logprobs():
    logits = random_logits(1)
    before = logits.copy()

    plain = sample(logits, [sequence(temperature=0.0, logprobs=5)])[0]
    penalized = sample(logits, [sequence(prompt=range(9), output=[1], logprobs=5, repetition_penalty=2.0)])[0]

    assert np.array_equal(logits, before)
    assert penalized.logprobs is not None
    assert plain.logprobs is not None
    assert penalized.logprobs.alternatives == plain.logprobs.alternatives


def test_logprobs_are_those_of_the_raw_logits_likeliest_first():
    logits = logits_of([0.1, 0.45, 0.45])

    outcome = sample(logits, [sequence(temperature=0.0, logprobs=2)])[0]

    assert outcome.logprobs is not None
    assert outcome.logprobs.logprob == pytest.approx(np.log(0.45), abs=1e-6)
    assert [token_id for token_id, _ in outcome.logprobs.alternatives] == [1, 2]


def test_logprobs_of_the_chosen_token_only_when_none_more_are_asked():
    outcome = sample(random_logits(2), [sequence(logprobs=0)])[0]

    assert outcome.logprobs is not None
    assert outcome.logprobs.alternatives == ()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_row_fails_alone(poison):
    logits = random_logits(3, rows=3)
    healthy = sample(logits, [sequence()] * 3)
    logits[1, 7] = poison

    outcomes = sample(logits, [sequence()] * 3)

    assert isinstance(outcomes[1].error, NumericFailureError)
    assert outcomes[1].token_id is None
    assert (outcomes[0], outcomes[2]) == (healthy[0], healthy[2])


@given(
    st.integers(0, 10**6),
    st.integers(0, 2**64 - 1),
    st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.0}]),
)
def test_a_token_does_not_depend_on_its_batch(seed, sampling_seed, sampling):
    logits = random_logits(seed, rows=4)
    one = sequence(output=[4, 2], seed=sampling_seed, logprobs=3, **sampling)

    alone = sample(logits[2:3], [one])[0]
    together = sample(logits, [sequence(seed=1), sequence(temperature=0.0), one, sequence(top_k=2)])[2]

    assert together == alone


def test_the_random_number_depends_on_seed_and_index_alone():
    # Fixed for ever: a request that another worker takes over must go on with the same numbers.
    assert random_point(0, 0) == random_point(0, 0)
    assert [round(random_point(seed, index) / 2**POINT_BITS, 6) for seed, index in ((0, 0), (0, 1), (1, 0))] == [
        0.815039,
        0.050715,
        0.15214,
    ]
    assert 0 <= min(random_point(7, index) for index in range(2000)) < 0.01 * 2**POINT_BITS
    assert 0.99 * 2**POINT_BITS < max(random_point(7, index) for index in range(2000)) < 2**POINT_BITS


def test_each_output_position_draws_anew():
    logits = np.zeros((1, VOCABULARY), dtype=np.float32)

    tokens = [sample(logits, [sequence(output=[0] * index, seed=3)])[0].token_id for index in range(30)]

    assert len(set(tokens)) > 10


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), st.integers(0, 2**64 - 1), st.integers(0, 20))
def test_the_place_of_a_draw_is_counted_from_the_output_alone(prompt, seed, count):
    output = [3] * count

    assert draw_of(sequence(prompt, output, seed=seed)).point == random_point(seed, count)
    without, with_prompt = (sample(random_logits(count), [sequence(ids, output, seed=seed)]) for ids in ([], prompt))
    assert with_prompt == without


@given(st.floats(-60, 0))
def test_weights_are_whole_numbers_near_the_powers_of_two(octaves):
    (weight,) = weights(np.array([octaves]))

    power = 2.0 ** (octaves + UNIT_BITS)
    assert weight == pytest.approx(power, abs=0.5 + 1e-12 * power)
    assert weights(np.array([0.0])) == [2**UNIT_BITS]
    assert weights(np.array([-np.inf, -1e300])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("sampling", "token_ids"),
    [
        ({}, [46, 30, 49, 9, 48, 13, 7, 49]),
        ({"temperature": 0.7, "top_p": 0.9}, [47, 30, 4, 9, 2, 13, 41, 49]),
        ({"top_k": 5}, [47, 30, 47, 9, 48, 13, 7, 49]),
        ({"min_p": 0.05, "temperature": 2.0}, [39, 9, 49, 9, 48, 13, 7, 49]),
    ],
)
def test_a_seed_gives_the_same_tokens_for_ever(sampling, token_ids):
    found = [sample(random_logits(i), [sequence(output=[0] * i, seed=5, **sampling)])[0].token_id for i in range(8)]

    assert found == token_ids
